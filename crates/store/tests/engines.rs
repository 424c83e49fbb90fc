//! Every engine runs the same suite.

mod suite;

use std::sync::Arc;

use store::disk::{DiskStore, Options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk() {
    for (name, case) in suite::cases() {
        eprintln!("disk: {name}");
        let directory = tempfile::tempdir().unwrap();
        case(Arc::new(DiskStore::open(directory.path(), Options::default()).unwrap())).await;
    }
}
