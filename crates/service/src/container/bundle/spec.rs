//! The runtime configuration: pure.
//!
//! Namespaces, capabilities, masked paths and mounts are those that Docker gives an unprivileged
//! container, and an image's variables, command and directories mean what they mean to Docker. What
//! the kernel refuses in a plain user's namespace (a new sysfs for the host's network, cgroups,
//! device rules) is left out or bound from the host.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount,
    MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use vellum_image::RunConfig;

use super::ProcessRequest;
use super::user::User;
use crate::error::{Error, Result};

/// Which network a container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Its own, with only a loopback device.
    #[default]
    None,
    /// The host's.
    Host,
}

/// A directory or file of the host that the container sees, bypassing its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The directory or file.
    pub source: PathBuf,
    /// Its place in the container, absolute.
    pub destination: PathBuf,
    /// Refuse writing.
    pub read_only: bool,
    /// The named volume that `source` belongs to.
    pub volume: Option<String>,
}

/// The facts about the container and the machine that the specification needs.
#[derive(Clone, Debug)]
pub(crate) struct Around {
    pub id: String,
    pub root: PathBuf,
    pub in_user_namespace: bool,
    /// Files of the machine that reveal its load, in addition to those of [`MASKED`].
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

/// Docker's current list, which is that of runc and containerd plus `interrupts`. The list in the
/// `oci_spec` library is older: it leaves out `interrupts` and `powercap`, which reveal to a
/// container what others on the machine type and compute (GHSA-6fw5-f8r9-fgfm,
/// GHSA-jq35-85cj-fj4p).
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

/// Removes `.`, `..` and doubled slashes from a path, looking only at its text, as Docker does with
/// paths in a configuration. A relative path counts from the root.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Returns the working directory of the command: absolute and clean. Errors: `Invalid` if it is
/// relative.
pub(super) fn workdir(image: &RunConfig, request: &ProcessRequest) -> Result<PathBuf> {
    let asked = request.workdir.as_deref();
    let dir = asked
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new(&image.working_dir));
    if dir.as_os_str().is_empty() {
        return Ok("/".into());
    }
    if !dir.is_absolute() {
        return Err(invalid(format!(
            "the working directory {} is not absolute",
            dir.display()
        )));
    }
    text(dir.as_os_str())?;
    Ok(clean(dir))
}

/// Returns the runtime configuration; `volumes` are those that the image declares.
///
/// Errors: `Invalid` if image and request don't result in a valid one.
pub(crate) fn spec(
    around: &Around,
    image: &RunConfig,
    user: &User,
    request: &ProcessRequest,
    volumes: &[Bind],
) -> Result<Spec> {
    let cwd = workdir(image, request)?;
    let bounding = capabilities(request)?;
    // execve(2) gives other users no capabilities. With root's capabilities they could open the
    // program and enter the directory.
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
    // The library adds devices and id maps of its own; runtimes create the usual devices
    // themselves.
    linux
        .set_uid_mappings(None)
        .set_gid_mappings(None)
        .set_devices(None);
    if around.in_user_namespace {
        linux.set_resources(None);
    }
    let mut mounts = mounts(around, request)?;
    mounts.extend(binds(request, volumes)?);
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path(&around.root)
                .readonly(request.read_only)
                .build()?,
        )
        .process(process)
        .hostname(hostname(request, &around.id))
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
            what: format!("cannot create a runtime configuration: {error}"),
            hint: None,
        }
    }
}

/// Docker's rule: an entrypoint from the user also drops the image's command, and a single empty
/// word is not an entrypoint.
fn arguments(image: &RunConfig, request: &ProcessRequest) -> Result<Vec<String>> {
    let (mut arguments, command) = match &request.entrypoint {
        None => (image.entrypoint.clone(), &image.cmd[..]),
        Some(own) => (vec![text(own)?], &[][..]),
    };
    if arguments == [""] {
        arguments.clear();
    }
    if request.command.is_empty() {
        arguments.extend_from_slice(command);
    }
    for word in &request.command {
        arguments.push(text(word)?);
    }
    if arguments.is_empty() {
        return Err(Error::Invalid {
            what: "there is no command to run: neither the image nor the command line has one"
                .into(),
            hint: Some("write it at the end: `vellum run IMAGE COMMAND`, `vellum run --container NAME COMMAND`, `vellum bundle NAME DIR COMMAND`".into()),
        });
    }
    if let Some(word) = arguments.iter().find(|word| word.contains('\0')) {
        return Err(invalid(format!(
            "`{}` can't be part of a command: it contains a NUL byte",
            word.escape_debug()
        )));
    }
    Ok(arguments)
}

/// Variables in the order in which they were given.
struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value.to_owned(),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }
}

/// Docker's rules: the user's value wins over the image's, the image's over the default; of two
/// with one name the last wins; a bare name removes a default (the user's bare name also removes
/// the image's variable); if HOME is missing or empty, it is the user's home directory.
fn environment(
    image: &RunConfig,
    user: &User,
    request: &ProcessRequest,
    id: &str,
) -> Result<Vec<String>> {
    let own = request
        .env
        .iter()
        .map(|variable| text(variable))
        .collect::<Result<Vec<_>>>()?;
    let of_image = |variable: &&String| !own.iter().any(|o| name_of(o) == name_of(variable));
    let (path_name, path) = PATH.split_once('=').unwrap_or_default();
    let mut defaults = vec![
        (path_name, path.to_owned()),
        ("HOSTNAME", hostname(request, id)),
    ];
    if request.tty {
        defaults.push(("TERM", "xterm".to_owned()));
    }
    let mut all = Environment(Vec::new());
    for (name, value) in &defaults {
        all.set(name, value);
    }
    for variable in image.env.iter().filter(of_image).chain(&own) {
        match variable.split_once('=') {
            Some(("", _)) => {
                return Err(invalid(format!("the variable `{variable}` has no name")));
            }
            _ if variable.contains('\0') => {
                let shown = variable.escape_debug();
                return Err(invalid(format!(
                    "the variable `{shown}` contains a NUL byte"
                )));
            }
            Some((name, value)) => all.set(name, value),
            None if defaults.iter().any(|(name, _)| name == variable) => all.remove(variable),
            None => {}
        }
    }
    let home = all.0.iter().find(|(name, _)| name == "HOME");
    if home.is_none_or(|(_, value)| value.is_empty()) {
        match std::str::from_utf8(user.home.as_deref().unwrap_or(b"/")) {
            Ok(home) => all.set("HOME", home),
            // Runtimes look it up themselves; their configuration is JSON, which can't hold it.
            Err(_) => all.remove("HOME"),
        }
    }
    let pairs = all.0.into_iter();
    Ok(pairs
        .map(|(name, value)| format!("{name}={value}"))
        .collect())
}

fn name_of(variable: &str) -> &str {
    variable.split('=').next().unwrap_or(variable)
}

fn hostname(request: &ProcessRequest, id: &str) -> String {
    let asked = request.hostname.clone();
    asked.unwrap_or_else(|| crate::names::short(id).to_owned())
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
            .map_err(|_| invalid(format!("`{name}` is not a capability")))
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

/// All capabilities of the running kernel; a runtime accepts no others.
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
    // Group 5 may not exist in a plain user's namespace.
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
    // sysfs belongs to a network namespace. Without a network namespace of its own, a plain user's
    // container can only bind the host's.
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
    Ok(all)
}

/// The binds from the host: outer places first, so that none hides another. Of two binds at one
/// place the later one shows: the user's, after an image's volume.
fn binds(request: &ProcessRequest, volumes: &[Bind]) -> Result<Vec<Mount>> {
    let mut all = Vec::new();
    if request.network == Network::Host {
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            all.push(mount(file, "bind", file, &["rbind", "ro"])?);
        }
    }
    for bind in volumes.iter().chain(&request.binds) {
        let mode = if bind.read_only { "ro" } else { "rw" };
        let options = ["rbind", "rprivate", mode];
        all.push(mount(&bind.destination, "bind", &bind.source, &options)?);
    }
    all.sort_by_key(|mount| clean(mount.destination()).components().count());
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

/// Parses `SOURCE:PATH[:ro|rw]`; a source without a slash names a volume.
pub(super) fn parse_bind(text: &OsStr) -> std::result::Result<Bind, String> {
    let wrong = |why: &str| format!("cannot bind `{}`: {why}", text.display());
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
        (false, Err(_)) => return Err(wrong("a volume's name must be UTF-8")),
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
