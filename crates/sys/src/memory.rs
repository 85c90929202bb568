//! This process's own memory.

/// Gives memory that is not in use back to the system, as far as the C library keeps any for later.
///
/// Takes a while where much was freed; worth it only then. Does nothing where the C library has no such call.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number, and touches only memory that is not allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}
