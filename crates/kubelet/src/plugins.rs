//! Plugins of the node make themselves known by a socket in `plugins_registry`: it is asked what it is, and whoever
//! handles that kind of plugin takes it from there.
//!
//! The directory is watched, not polled. A socket that does not answer yet is tried again with growing pauses for as
//! long as it is there.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirEntryExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::BoxFuture;
use parking_lot::Mutex;
use rpc::Channel;
use rpc::pluginregistration::registration_client::RegistrationClient;
use rpc::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus};
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

/// Pauses between tries of one socket.
const RETRY: stdx::Backoff =
    stdx::Backoff { initial: Duration::from_millis(500), max: Duration::from_secs(120) };
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Takes in plugins of one kind.
pub trait Handler: Send + Sync {
    /// A plugin has come. An error is told to it.
    fn register<'a>(&'a self, plugin: &'a PluginInfo, socket: &'a Path) -> BoxFuture<'a, Result<(), String>>;
    /// A plugin's socket is gone.
    fn deregister<'a>(&'a self, name: &'a str, socket: &'a Path) -> BoxFuture<'a, ()>;
}

/// Handlers by kind of plugin, such as `CSIPlugin`.
pub type Handlers = HashMap<&'static str, Arc<dyn Handler>>;

struct Known {
    /// Tells a socket from a later one at the same place.
    inode: u64,
    task: JoinHandle<()>,
    /// Kind and name, once it has registered.
    plugin: Arc<Mutex<Option<(String, String)>>>,
}

impl Drop for Known {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches the directory until dropped.
pub async fn watch(directory: PathBuf, handlers: Arc<Handlers>) {
    if let Err(error) = std::fs::create_dir_all(&directory) {
        tracing::warn!(%error, directory = %directory.display(), "no plugins can register");
        return;
    }
    let notices = match notices(&directory) {
        Ok(notices) => notices,
        Err(error) => {
            tracing::warn!(%error, directory = %directory.display(), "plugins are not watched for");
            return;
        }
    };
    let mut known: HashMap<PathBuf, Known> = HashMap::new();
    loop {
        reconcile(&directory, &handlers, &mut known).await;
        let Ok(mut ready) = notices.readable().await else { return };
        // What happened exactly does not matter: the directory is looked at as a whole.
        let mut buffer = [0u8; 4096];
        while rustix::io::read(notices.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
    }
}

fn notices(directory: &Path) -> std::io::Result<AsyncFd<OwnedFd>> {
    let notices = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    let flags = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVED_FROM;
    inotify::add_watch(&notices, directory, flags)?;
    // SAFETY: an owned descriptor stays open, and itself, for as long as it lives.
    Ok(unsafe { AsyncFd::register(notices) }?)
}

/// Starts on new sockets and lets go of those that are gone.
async fn reconcile(directory: &Path, handlers: &Arc<Handlers>, known: &mut HashMap<PathBuf, Known>) {
    let mut there: HashMap<PathBuf, u64> = HashMap::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let hidden = entry.file_name().as_encoded_bytes().first() == Some(&b'.');
        let socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if socket && !hidden {
            there.insert(entry.path(), entry.ino());
        }
    }
    let gone = known.iter().filter(|(path, known)| there.get(*path) != Some(&known.inode));
    let gone: Vec<PathBuf> = gone.map(|(path, _)| path.clone()).collect();
    for path in gone {
        let Some(old) = known.remove(&path) else { continue };
        let plugin = old.plugin.lock().take();
        if let Some((kind, name)) = plugin
            && let Some(handler) = handlers.get(kind.as_str())
        {
            handler.deregister(&name, &path).await;
        }
    }
    for (path, inode) in there {
        known.entry(path.clone()).or_insert_with(|| {
            let plugin = Arc::new(Mutex::new(None));
            let task = tokio::spawn(register(path, handlers.clone(), plugin.clone()));
            Known { inode, task, plugin }
        });
    }
}

/// Tries until the plugin is registered.
async fn register(path: PathBuf, handlers: Arc<Handlers>, plugin: Arc<Mutex<Option<(String, String)>>>) {
    let mut failures = 0;
    loop {
        match attempt(&path, &handlers).await {
            Ok(registered) => {
                *plugin.lock() = Some(registered);
                return;
            }
            Err(error) => tracing::warn!(socket = %path.display(), error, "a plugin could not be registered"),
        }
        failures += 1;
        tokio::time::sleep(RETRY.delay(failures)).await;
    }
}

async fn attempt(path: &Path, handlers: &Handlers) -> Result<(String, String), String> {
    let mut client = RegistrationClient::new(Channel::new(path));
    let info = tokio::time::timeout(ANSWER_MAX, client.get_info(InfoRequest {})).await;
    let info = info.map_err(|_| "it does not answer".to_owned())?;
    let info =
        info.map_err(|status| format!("failed to get plugin info: {}", status.message()))?.into_inner();
    let outcome = match handlers.get(info.r#type.as_str()) {
        Some(handler) => handler.register(&info, path).await,
        None => Err(format!(
            "no handler registered for plugin type: {} at socket {}",
            info.r#type,
            path.display()
        )),
    };
    let status = RegistrationStatus {
        plugin_registered: outcome.is_ok(),
        error: outcome.clone().err().unwrap_or_default(),
    };
    let told = tokio::time::timeout(ANSWER_MAX, client.notify_registration_status(status)).await;
    if !matches!(told, Ok(Ok(_))) {
        tracing::debug!(socket = %path.display(), "a plugin did not take the outcome of its registration");
    }
    outcome.map(|()| (info.r#type, info.name))
}
