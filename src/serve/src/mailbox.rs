//! How answers reach tasks on a single-threaded runtime: many at once, with one wake-up.
//!
//! Waking a task of another thread's runtime costs a system call. Whoever answers many tasks at a time puts what is to be
//! done for each into the mailbox of its thread and wakes one task there, which does it on its own thread, where waking is
//! only a matter of a queue.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

thread_local! {
    static HOME: RefCell<Option<Arc<Mailbox>>> = const { RefCell::new(None) };
    static THREAD: Cell<usize> = const { Cell::new(0) };
}

type Letter = Box<dyn FnOnce() + Send>;

/// Letters for the tasks of one thread. They are as many as answers that are waited for, so whoever bounds those bounds them.
pub struct Mailbox {
    /// `None` once nobody opens them any more.
    waiting: Mutex<Option<Vec<Letter>>>,
    wake: Notify,
}

/// The mailbox of this thread, if it is one that serves.
pub fn home() -> Option<Arc<Mailbox>> {
    HOME.with_borrow(Clone::clone)
}

/// The number of this thread if it serves, from 1; no other one of the process ever has the same. 0 for any other thread.
pub fn thread() -> usize {
    THREAD.get()
}

/// Gives this thread a number and a mailbox, and opens what comes into it. Never ends: run it as a task of the thread's
/// single-threaded runtime, for as long as anything there waits for other threads.
pub(crate) async fn open_letters(number: usize) {
    let mailbox = Arc::new(Mailbox { waiting: Mutex::new(Some(Vec::new())), wake: Notify::new() });
    let _removed = Installed::new(Arc::clone(&mailbox), number);
    let mut letters = Vec::new();
    loop {
        mailbox.wake.notified().await;
        if let Some(waiting) = &mut *mailbox.waiting.lock() {
            std::mem::swap(waiting, &mut letters);
        }
        letters.drain(..).for_each(|letter| letter());
    }
}

/// Takes the mailbox away again: requests that are made later are answered directly. Letters that are not opened, or come
/// later, are dropped, and with them the answers' channels, so that nobody waits for ever.
struct Installed(Arc<Mailbox>);

impl Installed {
    fn new(mailbox: Arc<Mailbox>, number: usize) -> Self {
        HOME.set(Some(Arc::clone(&mailbox)));
        THREAD.set(number);
        Self(mailbox)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        THREAD.set(0);
        HOME.set(None);
        // Dropped after the lock is free: a letter may hold anything.
        let _unopened = self.0.waiting.lock().take();
    }
}

/// Who waits for an answer of another thread: the way there, and the mailbox of the thread.
pub struct Asker<T> {
    to: oneshot::Sender<T>,
    mailbox: Option<Arc<Mailbox>>,
}

/// One that waits on this thread, and what it waits on. Dropping the first ends the wait without an answer.
pub fn ask<T>() -> (Asker<T>, oneshot::Receiver<T>) {
    let (to, answer) = oneshot::channel();
    (Asker { to, mailbox: home() }, answer)
}

/// One round of a postman: letters to any number of threads, and at its end one wake-up for each of them.
#[derive(Default)]
pub struct Round {
    touched: Vec<Arc<Mailbox>>,
}

impl Round {
    /// A round that has brought nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Does something on the thread of that mailbox; here and now if there is none. It must be short.
    pub fn bring(&mut self, to: Option<&Arc<Mailbox>>, letter: impl FnOnce() + Send + 'static) {
        let Some(mailbox) = to else { return letter() };
        let Some(waiting) = &mut *mailbox.waiting.lock() else { return };
        waiting.push(Box::new(letter));
        if !self.touched.iter().any(|known| Arc::ptr_eq(known, mailbox)) {
            self.touched.push(Arc::clone(mailbox));
        }
    }

    /// Answers one that waits.
    pub fn answer<T: Send + 'static>(&mut self, asker: Asker<T>, answer: T) {
        let Asker { to, mailbox } = asker;
        self.bring(mailbox.as_ref(), move || {
            // Whoever gave up does not want it any more.
            let _ = to.send(answer);
        });
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        self.touched.iter().for_each(|mailbox| mailbox.wake.notify_one());
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(test);
    }

    #[test]
    fn letters_are_opened_on_their_own_thread_in_order() {
        run(async {
            let opening = tokio::spawn(open_letters(7));
            tokio::task::yield_now().await;
            assert_eq!(thread(), 7);
            let home = home();
            assert!(home.is_some(), "a thread that serves has a mailbox");
            let (opened, mut all) = mpsc::channel(100);
            std::thread::spawn(move || {
                assert_eq!(thread(), 0);
                let mut round = Round::new();
                for number in 0..100 {
                    let opened = opened.clone();
                    round.bring(home.as_ref(), move || {
                        let _ = opened.try_send((number, thread()));
                    });
                }
            });
            for number in 0..100 {
                assert_eq!(all.recv().await, Some((number, 7)));
            }
            opening.abort();
            let _ = opening.await;
            assert_eq!((thread(), super::home().is_none()), (0, true));
        });
    }

    #[test]
    fn without_a_mailbox_it_is_done_at_once() {
        let (said, mut hears) = oneshot::channel();
        let mut round = Round::new();
        round.bring(None, || {
            let _ = said.send(());
        });
        assert!(hears.try_recv().is_ok(), "before the round ends");
    }

    #[test]
    fn what_comes_too_late_is_dropped() {
        run(async {
            let opening = tokio::spawn(open_letters(1));
            tokio::task::yield_now().await;
            let home = home();
            opening.abort();
            let _ = opening.await;
            let (said, hears) = oneshot::channel();
            Round::new().bring(home.as_ref(), move || {
                let _ = said.send(());
            });
            assert!(hears.await.is_err(), "whoever waits is told that no answer comes");
        });
    }
}
