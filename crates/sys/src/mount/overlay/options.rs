//! Overlay options: those requested, and those in effect.

use crate::mountinfo::FsOptions;

/// How renamed directories are handled (`redirect_dir`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectDir {
    /// Renaming a lower directory leaves a redirect; redirects are followed.
    On,
    /// Create no redirects; the module's `redirect_always_follow` decides whether they are
    /// followed.
    Off,
    /// Follow redirects, create none.
    Follow,
    /// Neither: a redirect in a layer is an error.
    NoFollow,
}

impl RedirectDir {
    /// Returns the option's value as the kernel spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            RedirectDir::On => "on",
            RedirectDir::Off => "off",
            RedirectDir::Follow => "follow",
            RedirectDir::NoFollow => "nofollow",
        }
    }
}

/// Whether inode numbers carry the layer in their high bits (`xino`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Xino {
    /// Always.
    On,
    /// Never.
    Off,
    /// If the layers' file systems are certain to leave those bits free.
    Auto,
}

impl Xino {
    /// Returns the option's value as the kernel spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Xino::On => "on",
            Xino::Off => "off",
            Xino::Auto => "auto",
        }
    }
}

/// Overlay options; `None` leaves one to the module's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// `index`: keep hard links together.
    pub index: Option<bool>,
    /// `redirect_dir`.
    pub redirect_dir: Option<RedirectDir>,
    /// `metacopy`: copy up attributes without data.
    pub metacopy: Option<bool>,
    /// `xino`.
    pub xino: Option<Xino>,
    /// `nfs_export`.
    pub nfs_export: Option<bool>,
    /// `userxattr`: marks in `user.overlay.*`. What a mount in a user namespace needs.
    pub userxattr: bool,
    /// `volatile`: never sync the upper.
    pub is_volatile: bool,
    /// Further options such as `context`, as given; a `None` value means a flag.
    pub extra: Vec<(String, Option<String>)>,
    /// Ignore set-user-id bits and capabilities (an attribute of the mount, not of the layers).
    pub nosuid: bool,
    /// Refuse device nodes.
    pub nodev: bool,
    /// Refuse execution.
    pub noexec: bool,
}

impl OverlayOptions {
    /// Returns the options as name and value, in a fixed order.
    pub fn pairs(&self) -> Vec<(String, Option<String>)> {
        let on_off = |b: bool| Some(if b { "on" } else { "off" }.to_string());
        let mut pairs = Vec::new();
        if let Some(index) = self.index {
            pairs.push(("index".to_string(), on_off(index)));
        }
        if let Some(redirect) = self.redirect_dir {
            pairs.push((
                "redirect_dir".to_string(),
                Some(redirect.as_str().to_string()),
            ));
        }
        if let Some(metacopy) = self.metacopy {
            pairs.push(("metacopy".to_string(), on_off(metacopy)));
        }
        if let Some(xino) = self.xino {
            pairs.push(("xino".to_string(), Some(xino.as_str().to_string())));
        }
        if let Some(nfs_export) = self.nfs_export {
            pairs.push(("nfs_export".to_string(), on_off(nfs_export)));
        }
        if self.userxattr {
            pairs.push(("userxattr".to_string(), None));
        }
        if self.is_volatile {
            pairs.push(("volatile".to_string(), None));
        }
        pairs.extend(self.extra.iter().cloned());
        pairs
    }
}

/// The options in effect on a mounted overlay. The kernel prints only what differs from the
/// module's defaults, which are filled in here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EffectiveOptions {
    /// `index`.
    pub index: bool,
    /// `redirect_dir` as the kernel spells it.
    pub redirect_dir: String,
    /// `metacopy`.
    pub metacopy: bool,
    /// `xino` if printed. It is not where all layers are on one file system, since it is not needed
    /// then.
    pub xino: Option<String>,
    /// `nfs_export`.
    pub nfs_export: bool,
    /// `userxattr`.
    pub userxattr: bool,
    /// `volatile`.
    pub is_volatile: bool,
}

impl EffectiveOptions {
    /// Reads the options of a mounted overlay.
    pub fn of(options: &FsOptions) -> Self {
        let is_on = |name: &str| match options.get(name) {
            Some(value) => value == "on",
            None => module_default(name),
        };
        EffectiveOptions {
            index: is_on("index"),
            redirect_dir: match options.get("redirect_dir") {
                Some(value) => value.to_string_lossy().into_owned(),
                None if module_default("redirect_dir") => "on".into(),
                None => "off".into(),
            },
            metacopy: is_on("metacopy"),
            xino: options
                .get("xino")
                .map(|v| v.to_string_lossy().into_owned()),
            nfs_export: is_on("nfs_export"),
            userxattr: options.get("userxattr").is_some(),
            is_volatile: options.get("volatile").is_some()
                || options.get("fsync").is_some_and(|v| v == "volatile"),
        }
    }

    /// Returns the first requested option that is not in effect: what was requested, and the actual
    /// value.
    pub fn missing(&self, asked: &OverlayOptions) -> Option<(String, String)> {
        let on_off = |b: bool| if b { "on" } else { "off" };
        let flag = |name: &str, asked: Option<bool>, is: bool| match asked {
            Some(want) if want != is => Some((
                format!("{name}={}", on_off(want)),
                format!("{name}={}", on_off(is)),
            )),
            _ => None,
        };
        flag("index", asked.index, self.index)
            .or_else(|| flag("metacopy", asked.metacopy, self.metacopy))
            .or_else(|| flag("nfs_export", asked.nfs_export, self.nfs_export))
            .or_else(|| {
                let want = asked.redirect_dir?.as_str();
                // "off" becomes "follow" or "nofollow", depending on the module's
                // redirect_always_follow.
                let is = self.redirect_dir.as_str();
                let same = want == is || want == "off" && is != "on" || is == "off" && want != "on";
                (!same).then(|| (format!("redirect_dir={want}"), format!("redirect_dir={is}")))
            })
            .or_else(|| {
                (asked.userxattr && !self.userxattr)
                    .then(|| ("userxattr".into(), "no userxattr".into()))
            })
            .or_else(|| {
                (asked.is_volatile && !self.is_volatile)
                    .then(|| ("volatile".into(), "no volatile".into()))
            })
            .or_else(|| match (asked.xino, self.xino.as_deref()) {
                (Some(Xino::On), Some(is)) if is != "on" => {
                    Some(("xino=on".into(), format!("xino={is}")))
                }
                _ => None,
            })
    }
}

fn module_default(name: &str) -> bool {
    std::fs::read(format!("/sys/module/overlay/parameters/{name}"))
        .is_ok_and(|v| v.trim_ascii() == b"Y")
}
