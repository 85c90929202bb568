//! Options of other engines and programs that callers and fstab lines pass along. They leave this
//! engine no choice.
//!
//! An option is accepted without effect if no difference can be seen, else refused with the reason.
//! The help does not list them; docs/overlay.md does.

use super::entry::Effect::{ForMount, Nothing, OnOff, Text};
use super::entry::{MountOption, option};

pub(super) static NOTHING_TO_CHOOSE: &[MountOption] = &[
    option(
        "fast_ino fast_ino_check",
        "save calls that Vellum doesn't make",
        OnOff(|_, _| {}),
    ),
    option(
        "plugins=LIST",
        "fuse-overlayfs reads their names but loads none",
        Nothing,
    ),
    option(
        "uuid=on|off|null|auto",
        "a FUSE mount has a file system id of its own",
        Text(|_, given| given.one_of(&["on", "off", "null", "auto"].map(|word| (word, ())))),
    ),
    // Files are accessed with the mounter's rights, and permissions are checked: there is no other
    // way here.
    option(
        "default_permissions override_creds",
        "always so here",
        Nothing,
    ),
    option(
        "nooverride_creds",
        "refused",
        Text(|_, given| {
            Err(given.refused(
                "files are always accessed with the mounting user's rights",
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
                "NFS can't export a mount of Vellum's engine",
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
                "Vellum's engine does not check digests of data",
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
        "libfuse's; fixed here",
        Nothing,
    ),
    option(
        "max_read=BYTES max_background=N congestion_threshold=N subtype=NAME blksize=BYTES",
        "libfuse's; fixed here",
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
