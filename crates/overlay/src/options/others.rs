//! Options of other engines and programs, which callers and fstab lines bring along: this engine
//! has no choice there.
//!
//! What leaves nothing to see is accepted without effect; else it is refused with the reason. Help
//! does not list them, docs/overlay.md does.

use super::entry::Effect::{ForMount, Nothing, OnOff, Text};
use super::entry::{MountOption, option};

pub(super) static NOTHING_TO_CHOOSE: &[MountOption] = &[
    option(
        "fast_ino fast_ino_check",
        "spare calls that are not made here",
        OnOff(|_, _| {}),
    ),
    option(
        "plugins=LIST",
        "fuse-overlayfs reads their names and loads none",
        Nothing,
    ),
    option(
        "uuid=on|off|null|auto",
        "a FUSE mount has a file system id of its own",
        Text(|_, given| given.one_of(&["on", "off", "null", "auto"].map(|word| (word, ())))),
    ),
    // Files are reached with the mounter's rights, and permissions are checked: there is no other
    // way here.
    option(
        "default_permissions override_creds",
        "files are reached so anyway",
        Nothing,
    ),
    option(
        "nooverride_creds",
        "refused",
        Text(|_, given| {
            Err(given.refused(
                "files are always reached with the rights of whoever mounted",
                "leave it out",
            ))
        }),
    ),
    option(
        "nfs_export=off",
        "`on` is refused",
        Text(|_, given| match given.on_off()? {
            false => Ok(()),
            true => Err(given.refused(
                "a mount of Vellum's engine can't be exported by NFS",
                "export the upper's file system, or mount with the kernel's overlay: \
                     -t overlay -o nfs_export=on",
            )),
        }),
    ),
    option(
        "verity=off",
        "`on` and `require` are refused",
        Text(|_, given| match given.value {
            "off" => Ok(()),
            _ => Err(given.refused(
                "digests of data are not checked by Vellum's engine",
                "mount with the kernel's overlay: -t overlay -o verity=require",
            )),
        }),
    ),
    option(
        "fscontext=LABEL defcontext=LABEL rootcontext=LABEL",
        "other SELinux labels",
        Nothing,
    ),
    option(
        "splice_read splice_write splice_move no_splice_read no_splice_write no_splice_move",
        "how libfuse moves bytes",
        Nothing,
    ),
    option(
        "kernel_cache auto_cache clone_fd big_writes nonempty auto_unmount",
        "libfuse's, chosen here already",
        Nothing,
    ),
    option(
        "max_read=BYTES max_background=N congestion_threshold=N subtype=NAME blksize=BYTES",
        "libfuse's, chosen here already",
        Nothing,
    ),
    option(
        "defaults auto noauto nouser users owner group nofail _netdev silent loud lazytime nolazytime \
         iversion noiversion mand nomand norelatime nostrictatime",
        "for mount(8) itself",
        ForMount,
    ),
    option(
        "user=NAME uhelper=NAME helper=NAME",
        "for mount(8) itself",
        ForMount,
    ),
];
