//! A daemon's response to signals: unmount, abort the connection, print counts.

use std::sync::Arc;
use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use super::Unmounter;
use crate::Result;
use crate::counters::Counters;

/// Listens until it is stopped.
#[derive(Debug)]
pub(super) struct Listener {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// Signals that are held for [`Session::take_signals`](super::Session::take_signals), and do
/// nothing until then.
#[derive(Debug)]
pub struct Caught(Signals);

impl Caught {
    /// Catches from now on the signals a daemon listens to: SIGTERM, SIGINT, SIGHUP and SIGUSR1.
    pub fn new() -> Result<Caught> {
        let caught = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]);
        Ok(Caught(caught.map_err(failed)?))
    }
}

fn failed(error: std::io::Error) -> vellum_sys::Error {
    vellum_sys::Error::new("listen to", "signals", error)
}

/// Starts listening.
pub(super) fn listen(
    Caught(mut signals): Caught,
    unmounter: Unmounter,
    counters: Arc<Counters>,
) -> Result<Listener> {
    let handle = signals.handle();
    let thread = std::thread::Builder::new()
        .name(String::from("vellum-signals"))
        .spawn(move || {
            let mut asked = false;
            for signal in signals.forever() {
                match signal {
                    SIGUSR1 => eprintln!("{}", counters.now()),
                    _ if asked => {
                        if let Err(error) = unmounter.abort() {
                            // Without fusectl only the process that holds the connection can end
                            // it: the next mount of the upper starts as after a crash.
                            tracing::error!(%error, "can't abort the connection; exiting at once");
                            std::process::exit(1);
                        }
                    }
                    _ => {
                        asked = true;
                        match unmounter.unmount() {
                            Ok(true) => {}
                            Ok(false) => tracing::warn!(
                                "not unmounted: the mount is covered by another, or gone"
                            ),
                            Err(error) => tracing::error!(%error, "can't unmount"),
                        }
                    }
                }
            }
        })
        .map_err(failed)?;
    Ok(Listener { handle, thread })
}

/// Asks the kernel to kill other processes before this one when memory runs out. Without the
/// privilege nothing changes.
pub(super) fn outlive_others() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-900") {
        tracing::debug!(%error, "can't lower the OOM score; this process is not protected");
    }
}

impl Listener {
    pub fn stop(self) {
        self.handle.close();
        // The thread has no result; a panic in it was printed.
        drop(self.thread.join());
    }
}
