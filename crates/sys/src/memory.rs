//! This process's own memory.

/// Returns unused memory to the system, as far as the C library keeps any for later.
///
/// Takes a while where much was freed, and is only worthwhile then. Does nothing where the C
/// library has no such call.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number, and touches only memory that is not allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Keeps the C library's reserve small from now on, for a process that must shrink back to its
/// normal size.
///
/// By default, freeing a large block teaches the library to keep blocks of that size, up to 64 MiB
/// for each of its arenas, and [`give_back`] does not reach the end of an arena. Does nothing where
/// the C library has no such call.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        // Setting either turns off that adjustment. Blocks of half a MiB and more get their own
        // mapping and are returned at once.
        const MAPPED_FROM_BYTES: libc::c_int = 512 << 10;
        const RESERVE_BYTES: libc::c_int = 256 << 10;
        // SAFETY: mallopt takes numbers and may be called at any time.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, RESERVE_BYTES);
        }
    }
}
