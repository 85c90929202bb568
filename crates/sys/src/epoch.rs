//! Tells one boot of the machine, and one mount of a file system, from another. This shows whether
//! unsynced writes may have been lost.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags};

use crate::{Error, Result};

/// Returns the kernel's boot id; it differs after every boot.
pub fn boot_id() -> Result<[u8; 16]> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read(PATH).map_err(|error| Error::new("read", PATH, error))?;
    let mut id = [0; 16];
    let digits: Vec<u8> = text
        .iter()
        .filter_map(|&byte| char::from(byte).to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Ok(id)
}

/// Returns the unique id of the mount through which `fd` was opened, never reused until the next
/// boot; 0 before Linux 6.8.
pub fn mount_id(fd: impl AsFd) -> Result<u64> {
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let fd = fd.as_fd();
    let got = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, UNIQUE)
        .map_err(|errno| Error::at("stat", fd, "", errno))?;
    match got.stx_mask & UNIQUE.bits() {
        0 => Ok(0),
        _ => Ok(got.stx_mnt_id),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_stay_what_they_are() {
        let boot = super::boot_id().unwrap();
        assert_ne!(boot, [0; 16]);
        assert_eq!(boot, super::boot_id().unwrap());
        let dir = std::fs::File::open("/").unwrap();
        assert_eq!(
            super::mount_id(&dir).unwrap(),
            super::mount_id(&dir).unwrap()
        );
    }
}
