//! The one thread that does all communication with registries.
//!
//! A current-thread runtime drives any number of transfers at once; callers on ordinary threads
//! hand it futures and wait. Waiting ends early when the user cancels, and dropping the runtime
//! ends the thread and every transfer.

use std::future::Future;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use vellum_sys::Cancel;

use super::{RegistryError, Retry};

/// How often a waiting caller checks for cancellation.
const LOOK: Duration = Duration::from_millis(100);

/// Runs `future` to its end; `None` as soon as the user cancels.
pub(super) async fn unless_cancelled<T>(
    cancel: &Cancel,
    future: impl Future<Output = T>,
) -> Option<T> {
    tokio::pin!(future);
    loop {
        match tokio::time::timeout(LOOK, &mut future).await {
            Ok(done) => return Some(done),
            Err(_) if cancel.is_cancelled() => return None,
            Err(_) => {}
        }
    }
}

/// The thread and the channel to it.
#[derive(Debug)]
pub(super) struct Runtime {
    handle: Handle,
    cancel: Cancel,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    pub(super) fn start(cancel: Cancel) -> Result<Self, RegistryError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(RegistryError::Runtime)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = Builder::new()
            .name("registry".to_owned())
            .spawn(move || {
                // Ends when `stop` is sent or dropped; both mean the same.
                let _ = runtime.block_on(stopped);
                // Name lookups run on the pool's threads, and are not waited for.
                runtime.shutdown_background();
            })
            .map_err(RegistryError::Runtime)?;
        Ok(Self {
            handle,
            cancel,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Runs `future` to its end on the thread; `Stopped` as soon as the user cancels.
    pub(super) fn run<T, F>(&self, future: F) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RegistryError>> + Send + 'static,
    {
        let (done, wait) = mpsc::channel();
        let task = self.handle.spawn(async move {
            // If the caller no longer waits, the user has cancelled.
            let _ = done.send(future.await);
        });
        loop {
            match wait.recv_timeout(LOOK) {
                Ok(outcome) => return outcome,
                Err(mpsc::RecvTimeoutError::Timeout) if self.cancel.is_cancelled() => {
                    task.abort();
                    return Err(RegistryError::Stopped);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let died = std::io::Error::other("the client thread died");
                    return Err(RegistryError::Runtime(died));
                }
            }
        }
    }
}

impl Runtime {
    /// Like [`Runtime::run`], but tries again after a pause as long as the failure is temporary and
    /// `retry` allows it.
    pub(super) fn run_patiently<T, F>(
        &self,
        retry: Retry,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RegistryError>> + Send + 'static,
    {
        let mut failures = 0;
        loop {
            let error = match self.run(attempt()) {
                Ok(done) => return Ok(done),
                Err(e) => e,
            };
            failures += 1;
            let Some(pause) = retry.pause_after(failures, &error) else {
                return Err(error);
            };
            tracing::debug!(%error, "trying again after a pause");
            self.run(async move {
                tokio::time::sleep(pause).await;
                Ok(())
            })?;
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been reported there already.
            let _ = thread.join();
        }
    }
}
