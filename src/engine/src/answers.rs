//! How answers reach tasks on a single-threaded runtime: many at once, with one wake-up.
//!
//! Waking a task of another thread's runtime costs a system call. The committer answers a whole batch at a time, so for
//! a thread that has a [`Mailbox`] it puts all answers there and wakes one task, which hands them out on its own thread,
//! where waking is only a matter of a queue.

use std::{cell::RefCell, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::committer::Answer;

thread_local! {
    static MAILBOX: RefCell<Option<Arc<Mailbox>>> = const { RefCell::new(None) };
}

/// Answers for the tasks of one thread.
#[derive(Default)]
pub(crate) struct Mailbox {
    waiting: Mutex<Vec<Answer>>,
    wake: Notify,
}

/// The mailbox of this thread, if it has one.
pub(crate) fn mailbox() -> Option<Arc<Mailbox>> {
    MAILBOX.with_borrow(Clone::clone)
}

/// Gives this thread a mailbox and hands out what comes into it. Never ends: run it as a task of the thread's
/// single-threaded runtime, for as long as anything on that runtime asks the engine.
pub(crate) async fn hand_out() {
    let mailbox = Arc::new(Mailbox::default());
    let _removed = Installed::new(Arc::clone(&mailbox));
    let mut answers = Vec::new();
    loop {
        mailbox.wake.notified().await;
        std::mem::swap(&mut *mailbox.waiting.lock(), &mut answers);
        answers.drain(..).for_each(Answer::send);
    }
}

/// Takes the mailbox away again: requests that are made later are answered directly.
struct Installed;

impl Installed {
    fn new(mailbox: Arc<Mailbox>) -> Self {
        MAILBOX.set(Some(mailbox));
        Self
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        MAILBOX.set(None);
    }
}

/// Sends answers: each directly, or by the mailbox of the thread that asked.
pub(crate) fn send_all(answers: impl Iterator<Item = (Answer, Option<Arc<Mailbox>>)>) {
    let mut touched: Vec<Arc<Mailbox>> = Vec::new();
    for (answer, mailbox) in answers {
        let Some(mailbox) = mailbox else {
            answer.send();
            continue;
        };
        mailbox.waiting.lock().push(answer);
        if !touched.iter().any(|known| Arc::ptr_eq(known, &mailbox)) {
            touched.push(mailbox);
        }
    }
    touched.iter().for_each(|mailbox| mailbox.wake.notify_one());
}
