//! `up`
pub mod data_dir;
mod etcd_children;
mod spec_watch;
