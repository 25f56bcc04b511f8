//! The storages that are compared with the engine.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use parking_lot::RwLock;
use redb::{ReadableDatabase, ReadableTable, TableDefinition};

use crate::grouped::{Record, Storage};

/// What a record holds: the key's length, the key, the value.
fn encode(record: &Record, out: &mut Vec<u8>) {
    out.extend_from_slice(&(record.key.len() as u32).to_be_bytes());
    out.extend_from_slice(&record.key);
    out.extend_from_slice(&record.value);
}

fn decode(record: &[u8]) -> Result<(&[u8], &[u8])> {
    let len = record.first_chunk::<4>().context("a record is too short")?;
    let len = u32::from_be_bytes(*len) as usize;
    ensure!(record.len() >= 4 + len, "a record is too short");
    Ok(record[4..].split_at(len))
}

/// A file that grows, and everything in memory: the simplest durable store. It has no checksums and never compacts.
pub struct Append {
    file: File,
    path: std::path::PathBuf,
    values: RwLock<HashMap<u64, Bytes>>,
}

impl Append {
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("log");
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        Ok(Self { file, path, values: RwLock::default() })
    }
}

impl Storage for Append {
    fn commit(&self, records: &[Record]) -> Result<()> {
        let mut out = Vec::new();
        for record in records {
            let at = out.len();
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&record.revision.to_be_bytes());
            encode(record, &mut out);
            let len = (out.len() - at - 4) as u32;
            out[at..at + 4].copy_from_slice(&len.to_be_bytes());
        }
        (&self.file).write_all(&out)?;
        self.file.sync_data()?;
        let mut values = self.values.write();
        for record in records {
            values.insert(record.revision, record.value.clone());
        }
        Ok(())
    }

    fn get(&self, revision: u64) -> Result<Option<Bytes>> {
        Ok(self.values.read().get(&revision).cloned())
    }

    fn load(&self, each: &mut dyn FnMut(u64, Bytes)) -> Result<()> {
        let file = std::fs::read(&self.path)?;
        let mut rest = file.as_slice();
        let mut values = self.values.write();
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let (record, after) = after.split_at(u32::from_be_bytes(*len) as usize);
            let (revision, record) = record.split_first_chunk::<8>().context("a record is too short")?;
            let revision = u64::from_be_bytes(*revision);
            let (key, value) = decode(record)?;
            values.insert(revision, Bytes::copy_from_slice(value));
            each(revision, Bytes::copy_from_slice(key));
            rest = after;
        }
        Ok(())
    }
}

/// A log-structured merge tree.
pub struct Fjall {
    database: fjall::Database,
    records: fjall::Keyspace,
}

impl Fjall {
    pub fn open(dir: &Path) -> Result<Self> {
        let database = fjall::Database::builder(dir).open()?;
        let records = database.keyspace("records", fjall::KeyspaceCreateOptions::default)?;
        Ok(Self { database, records })
    }
}

impl Storage for Fjall {
    fn commit(&self, records: &[Record]) -> Result<()> {
        let mut batch = self.database.batch().durability(Some(fjall::PersistMode::SyncData));
        for record in records {
            let mut out = Vec::with_capacity(4 + record.key.len() + record.value.len());
            encode(record, &mut out);
            batch.insert(&self.records, record.revision.to_be_bytes(), out);
        }
        Ok(batch.commit()?)
    }

    fn get(&self, revision: u64) -> Result<Option<Bytes>> {
        let Some(record) = self.records.get(revision.to_be_bytes())? else { return Ok(None) };
        Ok(Some(Bytes::copy_from_slice(decode(&record)?.1)))
    }

    fn load(&self, each: &mut dyn FnMut(u64, Bytes)) -> Result<()> {
        for record in self.records.iter() {
            let (revision, record) = record.into_inner()?;
            let revision = u64::from_be_bytes(revision.as_ref().try_into()?);
            each(revision, Bytes::copy_from_slice(decode(&record)?.0));
        }
        Ok(())
    }
}

const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");

/// A copy-on-write B-tree in one file, as bbolt is.
pub struct Redb(redb::Database);

impl Redb {
    pub fn open(dir: &Path) -> Result<Self> {
        let database = redb::Database::create(dir.join("records.redb"))?;
        let begin = database.begin_write()?;
        begin.open_table(RECORDS)?;
        begin.commit()?;
        Ok(Self(database))
    }
}

impl Storage for Redb {
    fn commit(&self, records: &[Record]) -> Result<()> {
        let mut write = self.0.begin_write()?;
        write.set_durability(redb::Durability::Immediate)?;
        let mut table = write.open_table(RECORDS)?;
        let mut out = Vec::new();
        for record in records {
            out.clear();
            encode(record, &mut out);
            table.insert(record.revision, out.as_slice())?;
        }
        drop(table);
        Ok(write.commit()?)
    }

    fn get(&self, revision: u64) -> Result<Option<Bytes>> {
        let table = self.0.begin_read()?.open_table(RECORDS)?;
        let Some(record) = table.get(revision)? else { return Ok(None) };
        Ok(Some(Bytes::copy_from_slice(decode(record.value())?.1)))
    }

    fn load(&self, each: &mut dyn FnMut(u64, Bytes)) -> Result<()> {
        let table = self.0.begin_read()?.open_table(RECORDS)?;
        for record in table.iter()? {
            let (revision, record) = record?;
            each(revision.value(), Bytes::copy_from_slice(decode(record.value())?.0));
        }
        Ok(())
    }
}
