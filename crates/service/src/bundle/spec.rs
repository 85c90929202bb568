//! The runtime configuration: pure.
//!
//! Namespaces, capabilities, masked paths and mounts are those that Docker gives an unprivileged container. In a plain user's namespace
//! what the kernel refuses there (a new sysfs for the host's network, cgroups, device rules) is left out or bound from the host.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::image::Config as ImageRun;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount,
    MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::ProcessRequest;
use super::user::User;
use crate::error::{Error, Result};

/// Which network a container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Its own, with a loopback device alone.
    #[default]
    None,
    /// The host's.
    Host,
}

/// A directory or file of the host shown in the container, past its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// What.
    pub source: PathBuf,
    /// Where, absolute.
    pub destination: PathBuf,
    /// Refuse writing.
    pub read_only: bool,
    /// The named volume that `source` belongs to.
    pub volume: Option<String>,
}

/// What the specification needs to know of the container and the machine.
#[derive(Clone, Debug)]
pub(crate) struct Around {
    pub id: String,
    pub root: PathBuf,
    pub in_user_namespace: bool,
    /// Files of the machine that tell about its load, beside those of [`MASKED`].
    pub thermal: Vec<PathBuf>,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Docker's default set.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Today's list of Docker, which is that of runc and containerd and `interrupts`. The one in the
/// `oci_spec` library is older: it leaves `interrupts` and `powercap` open, which tell a container
/// what others on the machine type and compute (GHSA-6fw5-f8r9-fgfm, GHSA-jq35-85cj-fj4p).
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Returns the runtime configuration. Errors: `Invalid` where the request makes none.
pub(crate) fn spec(
    around: &Around,
    image: Option<&ImageRun>,
    user: &User,
    request: &ProcessRequest,
) -> Result<Spec> {
    let cwd = match (
        &request.workdir,
        image.and_then(|i| i.working_dir().clone()),
    ) {
        (Some(dir), _) => dir.clone(),
        (None, Some(dir)) if !dir.is_empty() => PathBuf::from(dir),
        (None, _) => PathBuf::from("/"),
    };
    if !cwd.is_absolute() {
        return Err(invalid(format!(
            "the working directory {} is not absolute",
            cwd.display()
        )));
    }
    let bounding = capabilities(request)?;
    // What execve(2) leaves to other users: nothing. With root's they would open the program, and
    // stand in the directory.
    let own = match user.uid {
        0 => bounding.clone(),
        _ => Capabilities::new(),
    };
    let process = ProcessBuilder::default()
        .terminal(request.tty)
        .user(
            UserBuilder::default()
                .uid(user.uid)
                .gid(user.gid)
                .additional_gids(user.additional_gids.clone())
                .build()?,
        )
        .args(arguments(image, request)?)
        .env(environment(image, user, request, &around.id)?)
        .cwd(cwd)
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(bounding)
                .effective(own.clone())
                .permitted(own)
                .inheritable(Capabilities::new())
                .ambient(Capabilities::new())
                .build()?,
        )
        .rlimits(Vec::new())
        .no_new_privileges(false)
        .build()?;
    let thermal = around.thermal.iter().map(|path| text(path.as_os_str()));
    let masked = MASKED.map(|path| Ok(path.to_owned())).into_iter();
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(request.network)?)
        .masked_paths(masked.chain(thermal).collect::<Result<Vec<_>>>()?)
        .readonly_paths(READ_ONLY.map(str::to_owned).to_vec());
    if !around.in_user_namespace {
        let none = LinuxDeviceCgroupBuilder::default()
            .allow(false)
            .access("rwm")
            .build()?;
        linux = linux.resources(
            LinuxResourcesBuilder::default()
                .devices(vec![none])
                .build()?,
        );
    }
    let mut linux = linux.build()?;
    // The library puts devices and id maps of its own there; runtimes make the usual devices by themselves.
    linux
        .set_uid_mappings(None)
        .set_gid_mappings(None)
        .set_devices(None);
    if around.in_user_namespace {
        linux.set_resources(None);
    }
    let mut mounts = mounts(around, request)?;
    for bind in &request.binds {
        let mode = if bind.read_only { "ro" } else { "rw" };
        mounts.push(mount(
            &bind.destination,
            "bind",
            &bind.source,
            &["rbind", "rprivate", mode],
        )?);
    }
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path(&around.root)
                .readonly(request.read_only)
                .build()?,
        )
        .process(process)
        .hostname(
            request
                .hostname
                .clone()
                .unwrap_or_else(|| crate::names::short(&around.id).to_owned()),
        )
        .mounts(mounts)
        .linux(linux)
        .build()?;
    spec.set_annotations(None);
    Ok(spec)
}

fn invalid(what: String) -> Error {
    Error::Invalid { what, hint: None }
}

impl From<oci_spec::OciSpecError> for Error {
    fn from(error: oci_spec::OciSpecError) -> Self {
        Error::Invalid {
            what: format!("no runtime configuration can be made: {error}"),
            hint: None,
        }
    }
}

/// Docker's rule: an entrypoint of the user's drops the image's command too.
fn arguments(image: Option<&ImageRun>, request: &ProcessRequest) -> Result<Vec<String>> {
    let of_image = |get: fn(&ImageRun) -> &Option<Vec<String>>| {
        image.and_then(|i| get(i).clone()).unwrap_or_default()
    };
    let mut arguments = match &request.entrypoint {
        None => of_image(ImageRun::entrypoint),
        Some(own) if own.is_empty() => Vec::new(),
        Some(own) => vec![text(own)?],
    };
    if !request.command.is_empty() {
        for word in &request.command {
            arguments.push(text(word)?);
        }
    } else if request.entrypoint.is_none() {
        arguments.extend(of_image(ImageRun::cmd));
    }
    if arguments.is_empty() {
        return Err(Error::Invalid {
            what: "neither the image nor you name a command to run".into(),
            hint: Some("write it at the end: vellum run IMAGE COMMAND".into()),
        });
    }
    Ok(arguments)
}

fn environment(
    image: Option<&ImageRun>,
    user: &User,
    request: &ProcessRequest,
    id: &str,
) -> Result<Vec<String>> {
    let mut all: Vec<String> = image.and_then(|i| i.env().clone()).unwrap_or_default();
    for variable in &request.env {
        set(&mut all, text(variable)?);
    }
    let hostname = request
        .hostname
        .clone()
        .unwrap_or_else(|| crate::names::short(id).to_owned());
    let mut defaults = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    let home = String::from_utf8_lossy(user.home.as_deref().unwrap_or(b"/"));
    defaults.push(format!("HOME={home}"));
    if request.tty {
        defaults.push("TERM=xterm".to_owned());
    }
    for default in defaults {
        let name = name_of(&default).to_owned();
        if !all.iter().any(|v| name_of(v) == name) {
            all.push(default);
        }
    }
    Ok(all)
}

fn name_of(variable: &str) -> &str {
    variable.split('=').next().unwrap_or(variable)
}

fn set(all: &mut Vec<String>, variable: String) {
    match all.iter_mut().find(|v| name_of(v) == name_of(&variable)) {
        Some(known) => *known = variable,
        None => all.push(variable),
    }
}

fn text(word: &OsStr) -> Result<String> {
    word.to_str().map(str::to_owned).ok_or_else(|| {
        invalid(format!(
            "`{}` is not UTF-8, and a runtime configuration is JSON",
            word.display()
        ))
    })
}

fn capabilities(request: &ProcessRequest) -> Result<Capabilities> {
    let mut set: Capabilities = CAPABILITIES.into_iter().collect();
    let parse = |name: &String| -> Result<Option<Capability>> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            return Ok(None);
        }
        bare.parse()
            .map(Some)
            .map_err(|_| invalid(format!("`{name}` is no capability")))
    };
    let drops = request
        .cap_drop
        .iter()
        .map(parse)
        .collect::<Result<Vec<_>>>()?;
    let adds = request
        .cap_add
        .iter()
        .map(parse)
        .collect::<Result<Vec<_>>>()?;
    if drops.contains(&None) {
        set.clear();
    }
    for add in adds {
        match add {
            Some(one) => drop(set.insert(one)),
            None => set.extend(all_capabilities()),
        }
    }
    for one in drops.into_iter().flatten() {
        set.remove(&one);
    }
    Ok(set)
}

/// Those the kernel running now knows of, which are all that a runtime accepts.
fn all_capabilities() -> Vec<Capability> {
    [
        "AUDIT_CONTROL",
        "AUDIT_READ",
        "AUDIT_WRITE",
        "BLOCK_SUSPEND",
        "BPF",
        "CHECKPOINT_RESTORE",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "IPC_LOCK",
        "IPC_OWNER",
        "KILL",
        "LEASE",
        "LINUX_IMMUTABLE",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "MKNOD",
        "NET_ADMIN",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_RAW",
        "PERFMON",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_CHROOT",
        "SYS_MODULE",
        "SYS_NICE",
        "SYS_PACCT",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "SYSLOG",
        "WAKE_ALARM",
    ]
    .iter()
    .filter_map(|name| name.parse().ok())
    .collect()
}

fn namespaces(network: Network) -> Result<Vec<LinuxNamespace>> {
    use LinuxNamespaceType::{Ipc, Mount, Pid, Uts};
    let mut kinds = vec![Pid, Ipc, Uts, Mount];
    if network == Network::None {
        kinds.push(LinuxNamespaceType::Network);
    }
    kinds
        .into_iter()
        .map(|kind| Ok(LinuxNamespaceBuilder::default().typ(kind).build()?))
        .collect()
}

fn mounts(around: &Around, request: &ProcessRequest) -> Result<Vec<Mount>> {
    let pts: &[&str] = &[
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    // Group 5 need not exist in a plain user's namespace.
    let pts = if around.in_user_namespace {
        &pts[..5]
    } else {
        pts
    };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        mount("/dev/pts", "devpts", "devpts", pts)?,
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        )?,
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        )?,
    ];
    // sysfs belongs to a network namespace; without one of its own a plain user may only bind the host's.
    if around.in_user_namespace && request.network == Network::Host {
        all.push(mount(
            "/sys",
            "none",
            "/sys",
            &["rbind", "nosuid", "noexec", "nodev", "ro"],
        )?);
    } else {
        all.push(mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        )?);
    }
    if !around.in_user_namespace {
        all.push(mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        )?);
    }
    if request.network == Network::Host {
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            all.push(mount(file, "bind", file, &["rbind", "ro"])?);
        }
    }
    Ok(all)
}

fn mount(
    at: impl AsRef<Path>,
    kind: &str,
    source: impl AsRef<Path>,
    options: &[&str],
) -> Result<Mount> {
    let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
    Ok(MountBuilder::default()
        .destination(at.as_ref())
        .typ(kind)
        .source(source.as_ref())
        .options(options)
        .build()?)
}

/// Takes `SOURCE:PATH[:ro|rw]` apart; a source without a slash names a volume.
pub(super) fn parse_bind(text: &OsStr) -> std::result::Result<Bind, String> {
    let wrong = |why: &str| format!("`{}` is no volume to bind: {why}", text.display());
    let parts: Vec<&[u8]> = text.as_bytes().split(|b| *b == b':').collect();
    let (source, destination, read_only) = match parts[..] {
        [source, destination] => (source, destination, false),
        [source, destination, b"rw"] => (source, destination, false),
        [source, destination, b"ro"] => (source, destination, true),
        [_, _, _] => return Err(wrong("after the second colon only ro and rw are known")),
        [_] => return Err(wrong("it has no colon")),
        _ => return Err(wrong("it has too many colons")),
    };
    let destination = PathBuf::from(OsString::from(OsStr::from_bytes(destination)));
    if !destination.is_absolute() || destination.components().count() < 2 {
        return Err(wrong(
            "the path in the container must be absolute, and not the root",
        ));
    }
    if source.is_empty() {
        return Err(wrong("it names no source"));
    }
    let volume = match (source.contains(&b'/'), std::str::from_utf8(source)) {
        (true, _) => None,
        (false, Ok("." | "..")) => None,
        (false, Ok(name)) => Some(name.to_owned()),
        (false, Err(_)) => return Err(wrong("a volume's name is UTF-8")),
    };
    Ok(Bind {
        source: PathBuf::from(OsString::from(OsStr::from_bytes(source))),
        destination,
        read_only,
        volume,
    })
}

#[cfg(test)]
mod tests;
