//! This process's own memory.

/// Gives memory that is not in use back to the system, as far as the C library keeps any for later.
///
/// Takes a while where much was freed; worth it only then. Does nothing where the C library has no
/// such call.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number, and touches only memory that is not allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Keeps what the C library holds in reserve small from now on: for a process of its own that must
/// come back to its size.
///
/// By itself the library learns from each large block that is freed to keep blocks of that size, up
/// to 64 MiB for each of its arenas, and [`give_back`] does not reach the end of an arena. Does
/// nothing where the C library has no such call.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        // Setting either ends the learning. Blocks from half a MiB on are mapped for themselves and
        // go back at once.
        const MAPPED_FROM_BYTES: libc::c_int = 512 << 10;
        const RESERVE_BYTES: libc::c_int = 256 << 10;
        // SAFETY: mallopt takes numbers and may be called at any time.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, RESERVE_BYTES);
        }
    }
}
