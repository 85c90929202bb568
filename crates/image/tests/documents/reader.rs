//! The reader compared with Go's own: thousands of random documents, read by both and compared
//! field by field.
//!
//! Most values have the type of their field, or nothing would ever be compared. Names change their
//! case and occur twice, texts have invalid escapes, numbers don't fit, and finally some bytes are
//! changed. `VELLUM_SLOW` reads many more.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use vellum_image::json::{self, Empty, Input, JsonError, List, Unmarshal, Words};
use vellum_image::manifest::{Descriptor, Document, ManifestError};
use vellum_image::{ImageConfig, Platform};
use vellum_testkit::Rng;
use vellum_testkit::clients::find;

/// The expected type of a value.
enum Kind {
    Text,
    Digest,
    Media(&'static [&'static str]),
    Bool,
    Int,
    Words,
    Map,
    Set,
    List(&'static Kind),
    Object(&'static [Field]),
}

type Field = (&'static str, Kind);

static INNER: [Field; 2] = [("k", Kind::Text), ("n", Kind::Int)];
static SHAPE: [Field; 10] = [
    ("Task", Kind::Text),
    ("flag", Kind::Bool),
    ("inner", Kind::Object(&INNER)),
    ("maybe", Kind::Object(&INNER)),
    ("list", Kind::List(&Kind::Text)),
    ("items", Kind::List(&Kind::Object(&INNER))),
    ("map", Kind::Map),
    ("set", Kind::Set),
    ("words", Kind::Words),
    ("deep", Kind::Object(&SHAPE)),
];
static RUN: [Field; 9] = [
    ("User", Kind::Text),
    ("Env", Kind::List(&Kind::Text)),
    ("Entrypoint", Kind::Words),
    ("Cmd", Kind::Words),
    ("WorkingDir", Kind::Text),
    ("Volumes", Kind::Set),
    ("ExposedPorts", Kind::Set),
    ("Labels", Kind::Map),
    ("StopSignal", Kind::Text),
];
static STEP: [Field; 4] = [
    ("created", Kind::Text),
    ("created_by", Kind::Text),
    ("comment", Kind::Text),
    ("empty_layer", Kind::Bool),
];
static CONFIG: [Field; 7] = [
    ("created", Kind::Text),
    ("os", Kind::Text),
    ("architecture", Kind::Text),
    ("variant", Kind::Text),
    ("config", Kind::Object(&RUN)),
    (
        "rootfs",
        Kind::Object(&[("diff_ids", Kind::List(&Kind::Digest))]),
    ),
    ("history", Kind::List(&Kind::Object(&STEP))),
];
static PLATFORM: [Field; 3] = [
    ("os", Kind::Text),
    ("architecture", Kind::Text),
    ("variant", Kind::Text),
];
static DESCRIPTOR: [Field; 5] = [
    (
        "mediaType",
        Kind::Media(&[
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
        ]),
    ),
    ("digest", Kind::Digest),
    ("size", Kind::Int),
    ("annotations", Kind::Map),
    ("platform", Kind::Object(&PLATFORM)),
];
static MANIFEST: [Field; 4] = [
    ("artifactType", Kind::Text),
    (
        "mediaType",
        Kind::Media(&["application/vnd.oci.image.manifest.v1+json"]),
    ),
    ("config", Kind::Object(&DESCRIPTOR)),
    ("layers", Kind::List(&Kind::Object(&DESCRIPTOR))),
];
static INDEX: [Field; 2] = [
    (
        "mediaType",
        Kind::Media(&["application/vnd.oci.image.index.v1+json"]),
    ),
    ("manifests", Kind::List(&Kind::Object(&DESCRIPTOR))),
];

struct Maker {
    rng: Rng,
    out: Vec<u8>,
}

impl Maker {
    fn one_in(&mut self, n: usize) -> bool {
        self.rng.below(n) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.rng.below(from.len())]
    }

    fn put(&mut self, text: &str) {
        if self.one_in(12) {
            let space = self.pick(&[" ", "\n", "\t", "\r\n  "]);
            self.out.extend_from_slice(space.as_bytes());
        }
        self.out.extend_from_slice(text.as_bytes());
    }

    fn value(&mut self, kind: &Kind, depth: usize) {
        if self.one_in(20) {
            return self.put("null");
        }
        if self.one_in(150) {
            return self.anything(depth);
        }
        match kind {
            Kind::Text => self.text(),
            Kind::Digest => {
                let digit = self.pick(&["a", "0", "7"]).repeat(64);
                self.put(&format!("\"sha256:{digit}\""));
            }
            Kind::Media(types) => {
                let media_type = self.pick(types);
                self.put(&format!("\"{media_type}\""));
            }
            Kind::Bool => {
                let word = self.pick(&["true", "false"]);
                self.put(word);
            }
            Kind::Int if self.one_in(100) => self.number(),
            Kind::Int => {
                let number = self.pick(&["0", "-0", "1", "512", "9223372036854775807"]);
                self.put(number);
            }
            Kind::Words if self.one_in(3) => self.text(),
            Kind::Words => self.list(&Kind::Text, depth),
            Kind::Map => self.map(&Kind::Text, depth),
            Kind::Set => self.map(&Kind::Object(&[]), depth),
            Kind::List(of) => self.list(of, depth),
            Kind::Object(fields) => self.object(fields, depth),
        }
    }

    fn list(&mut self, of: &Kind, depth: usize) {
        self.put("[");
        for at in 0..self.rng.below(4) {
            if at > 0 {
                self.put(",");
            }
            self.value(of, depth + 1);
        }
        self.put("]");
    }

    fn map(&mut self, of: &Kind, depth: usize) {
        self.put("{");
        for at in 0..self.rng.below(4) {
            if at > 0 {
                self.put(",");
            }
            self.text();
            self.put(":");
            self.value(of, depth + 1);
        }
        self.put("}");
    }

    fn object(&mut self, fields: &[Field], depth: usize) {
        let most = if depth > 3 { 3 } else { fields.len() + 3 };
        self.put("{");
        for at in 0..self.rng.below(most) {
            if at > 0 {
                self.put(",");
            }
            if fields.is_empty() || self.one_in(12) {
                self.text();
                self.put(":");
                self.anything(depth + 1);
                continue;
            }
            let (name, kind) = &fields[self.rng.below(fields.len())];
            self.name(name);
            self.put(":");
            self.value(kind, depth + 1);
        }
        self.put("}");
    }

    fn name(&mut self, name: &str) {
        let how = self.rng.below(10);
        let mut spelt = String::new();
        for c in name.chars() {
            match (how, c) {
                (0, c) => spelt.extend(c.to_uppercase()),
                (1, 's' | 'S') => spelt.push('\u{17f}'),
                (1, 'k' | 'K') => spelt.push('\u{212a}'),
                (2, c) if self.one_in(3) => spelt.push_str(&format!("\\u{:04x}", u32::from(c))),
                (3, c) if self.one_in(2) => spelt.push(c.to_ascii_uppercase()),
                // Not letters, but different only in the bit that differs between upper and lower
                // case.
                (4, c) if self.one_in(20) => spelt.push(char::from(c as u8 ^ 0x20)),
                (_, c) => spelt.push(c),
            }
        }
        self.put(&format!("\"{spelt}\""));
    }

    fn text(&mut self) {
        self.put("\"");
        for _ in 0..self.rng.below(4) {
            let part: &[u8] = match self.rng.below(24) {
                0 => b"\\ud83d\\ude00",
                1 => b"\\ud800",
                2 => b"\\udc00",
                3 => b"\\ud800\\ud800\\udc00",
                4 => b"\\ud800\\n",
                5 => b"\xff",
                6 => b"\xe2\x82",
                7 => b"\xed\xa0\x80",
                8 => b"\xf4\x90\x80\x80",
                9 => b"\xc0\xaf",
                10 => b"\\u0000\\/\\b\\f\\r\\t\\\"\\\\",
                11 => "\u{2028}\u{7f}é😀".as_bytes(),
                12 => b"\\uFFFD\\u00e9",
                13 => b"/x",
                _ => b"ab",
            };
            self.out.extend_from_slice(part);
        }
        self.out.push(b'"');
    }

    fn number(&mut self) {
        let number = self.pick(&[
            "1.0",
            "1e3",
            "-1",
            "1E+2",
            "0.5",
            "9223372036854775808",
            "-9223372036854775808",
            "-9223372036854775809",
            "1e400",
            "123456789012345678901234567890",
            "01",
            "-",
            "1.",
            "+1",
            ".5",
            "0x10",
            "1e",
            "-0.0",
        ]);
        self.put(number);
    }

    fn anything(&mut self, depth: usize) {
        match self.rng.below(if depth > 4 { 5 } else { 7 }) {
            0 => self.text(),
            1 => self.put("17"),
            2 if self.one_in(4) => self.number(),
            2 => self.put("-0.5e-7"),
            3 => self.put("true"),
            4 => self.put("{}"),
            5 => self.map(&Kind::Int, depth),
            _ => self.list(&Kind::Set, depth),
        }
    }

    /// A document of this type.
    fn document(&mut self, kind: u8) -> Vec<u8> {
        self.out.clear();
        if self.one_in(500) {
            let depth = [9_998, 9_999, 10_000, 10_001][self.rng.below(4)];
            self.put("{\"x\":");
            let (open, close) = if self.one_in(2) {
                ("[", "]")
            } else {
                ("{\"\":", "}")
            };
            self.out.extend(open.repeat(depth).bytes());
            self.put("1");
            self.out.extend(close.repeat(depth).bytes());
            self.put("}");
        } else {
            let fields: &[Field] = match kind {
                b's' => &SHAPE,
                b'c' => &CONFIG,
                _ if self.one_in(2) => &MANIFEST,
                _ => &INDEX,
            };
            self.object(fields, 0);
        }
        if self.one_in(6) {
            for _ in 0..1 + self.rng.below(3) {
                let at = self.rng.below(self.out.len() + 1);
                let byte = [
                    b'"', b'\\', b'{', b']', b',', b':', 0, 0xff, b'1', b'n', b' ',
                ][self.rng.below(11)];
                match self.rng.below(3) {
                    0 => self.out.insert(at, byte),
                    1 if at < self.out.len() => drop(self.out.remove(at)),
                    2 if at < self.out.len() => self.out[at] = byte,
                    _ => {}
                }
            }
        }
        std::mem::take(&mut self.out)
    }
}

#[derive(Default)]
struct Inner {
    k: String,
    n: i64,
}

impl Unmarshal for Inner {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        input.object(|input, key| match json::choose(&["k", "n"], key) {
            Some("k") => self.k.unmarshal(input),
            Some("n") => self.n.unmarshal(input),
            _ => input.skip(),
        })
    }
}

/// One field of every type.
#[derive(Default)]
struct Shape {
    task: String,
    flag: bool,
    inner: Inner,
    maybe: Option<Inner>,
    list: List<String>,
    items: List<Inner>,
    map: BTreeMap<String, String>,
    set: BTreeMap<String, Empty>,
    words: Words,
    deep: Option<Box<Shape>>,
}

impl Unmarshal for Shape {
    fn unmarshal(&mut self, input: &mut Input<'_>) -> Result<(), JsonError> {
        let names = SHAPE.each_ref().map(|(name, _)| *name);
        input.object(|input, key| match json::choose(&names, key) {
            Some("Task") => self.task.unmarshal(input),
            Some("flag") => self.flag.unmarshal(input),
            Some("inner") => self.inner.unmarshal(input),
            Some("maybe") => self.maybe.unmarshal(input),
            Some("list") => self.list.unmarshal(input),
            Some("items") => self.items.unmarshal(input),
            Some("map") => self.map.unmarshal(input),
            Some("set") => self.set.unmarshal(input),
            Some("words") => self.words.unmarshal(input),
            Some("deep") if input.null()? => {
                self.deep = None;
                Ok(())
            }
            Some("deep") => self.deep.get_or_insert_default().unmarshal(input),
            _ => input.skip(),
        })
    }
}

fn text(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn optional(said: Option<&String>) -> String {
    said.map_or_else(|| "-".to_owned(), |said| text(said))
}

fn joined(open: char, parts: impl IntoIterator<Item = String>, close: char) -> String {
    let parts: Vec<String> = parts.into_iter().collect();
    format!("{open}{}{close}", parts.join(","))
}

fn texts(list: &[String]) -> String {
    joined('[', list.iter().map(|word| text(word)), ']')
}

fn keys<'a>(keys: impl IntoIterator<Item = &'a String>) -> String {
    joined('{', keys.into_iter().map(|key| text(key)), '}')
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    let pairs = map.iter().map(|(k, v)| format!("{}:{}", text(k), text(v)));
    // In the order of the texts, as in the other program.
    joined('{', pairs.collect::<BTreeSet<_>>(), '}')
}

impl Shape {
    fn said(self) -> String {
        let one = |i: &Inner| format!("{}:{}", text(&i.k), i.n);
        let parts = [
            text(&self.task),
            self.flag.to_string(),
            one(&self.inner),
            self.maybe.as_ref().map_or_else(|| "-".to_owned(), one),
            texts(&self.list.into_vec()),
            joined('[', self.items.into_vec().iter().map(one), ']'),
            pairs(&self.map),
            keys(self.set.keys()),
            texts(&self.words.0),
        ];
        let deep = self.deep.map_or_else(|| "-".to_owned(), |deep| deep.said());
        format!("{} ({deep})", parts.join(" "))
    }
}

fn said_of_config(config: &ImageConfig) -> String {
    let Platform {
        os,
        architecture,
        variant,
    } = config.platform();
    let run = &config.run;
    let diff_ids: Vec<String> = config.diff_ids.iter().map(ToString::to_string).collect();
    let mut said = [
        optional(config.created.as_ref()),
        text(&os),
        text(&architecture),
        text(&variant.unwrap_or_default()),
        text(&run.user),
        texts(&run.env),
        texts(&run.entrypoint),
        texts(&run.cmd),
        text(&run.working_dir),
        keys(&run.volumes),
        keys(&run.exposed_ports),
        pairs(&run.labels),
        text(&run.stop_signal),
        texts(&diff_ids),
    ]
    .join(" ");
    for step in &config.history {
        let created = optional(step.created.as_ref());
        let (by, comment) = (text(&step.created_by), text(&step.comment));
        said += &format!(" {created}:{by}:{comment}:{}", step.empty_layer);
    }
    said
}

fn said_of_document(document: &Document) -> String {
    let blob = |d: &Descriptor| {
        let (media_type, digest) = (text(&d.media_type), text(&d.digest.to_string()));
        format!("{media_type},{digest},{}", d.size_bytes)
    };
    match document {
        Document::Manifest(manifest) => {
            let layers = manifest
                .layers
                .iter()
                .map(|layer| format!(" {}", blob(&layer.blob)));
            format!(
                "manifest {}{}",
                blob(&manifest.config),
                layers.collect::<String>()
            )
        }
        Document::Index(index) => {
            let mut said = "index".to_owned();
            for entry in &index.entries {
                said += &format!(" {},{}", blob(&entry.manifest), pairs(&entry.annotations));
                if let Some(p) = &entry.platform {
                    let variant = p.variant.clone().unwrap_or_default();
                    said += &format!(
                        ",{}/{}/{}",
                        text(&p.os),
                        text(&p.architecture),
                        text(&variant)
                    );
                }
            }
            said
        }
    }
}

/// Vellum's result for a document; none if it is JSON and Vellum refuses it by a rule of its own.
fn ours(kind: u8, document: &[u8]) -> Option<String> {
    let error = || Some("error".to_owned());
    let judged = |refused: ManifestError| match refused {
        ManifestError::Json { .. } => error(),
        _ => None,
    };
    match kind {
        b's' => json::read::<Shape>(document).map_or_else(|_| error(), |shape| Some(shape.said())),
        b'c' => ImageConfig::parse(document.to_vec())
            .map_or_else(judged, |config| Some(said_of_config(&config))),
        _ => Document::parse(document.to_vec(), None)
            .map_or_else(judged, |document| Some(said_of_document(&document))),
    }
}

#[test]
fn documents_are_read_as_go_reads_them() {
    let Some(go) = find("go") else {
        return vellum_testkit::untested("documents beside Go", "go is not installed");
    };
    let slow = std::env::var_os("VELLUM_SLOW").is_some();
    let count = if slow { 1_000_000 } else { 30_000 };
    let scratch = vellum_testkit::Scratch::new();
    let program = scratch.join("reader");
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let built = Command::new(go)
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documents/go"))
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", kept.join("go"))
        .status();
    assert!(
        built.unwrap().success(),
        "the program in tests/documents/go is built"
    );

    let mut maker = Maker {
        rng: Rng::for_test("documents beside Go"),
        out: Vec::new(),
    };
    let documents: Vec<(u8, Vec<u8>)> = (0..count)
        .map(|at| b"ssccm"[at % 5])
        .map(|kind| (kind, maker.document(kind)))
        .collect();
    let mut child = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let answers = BufReader::new(child.stdout.take().unwrap());
    let (mut errors, mut refused, mut compared) = (0, 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (kind, document) in &documents {
                let size = (document.len() as u32).to_be_bytes();
                // After a failed comparison nothing reads on; the failure is reported separately.
                if input
                    .write_all(&[&[*kind], &size[..], document].concat())
                    .is_err()
                {
                    break;
                }
            }
            drop(input);
        });
        for ((kind, document), go) in documents.iter().zip(answers.lines()) {
            let go = go.unwrap();
            match ours(*kind, document) {
                // Our own rules apply only to what could be read.
                None => {
                    assert_ne!(go, "error", "{}", String::from_utf8_lossy(document));
                    refused += 1;
                }
                Some(ours) => {
                    let shown = String::from_utf8_lossy(&document[..document.len().min(2000)]);
                    assert_eq!(ours, go, "as {}: {shown}", char::from(*kind));
                    if ours == "error" {
                        errors += 1
                    } else {
                        compared += 1
                    }
                }
            }
        }
    });
    assert!(child.wait().unwrap().success());
    eprintln!("{compared} documents alike, {errors} refused by both, {refused} by rules of ours");
    assert_eq!(compared + errors + refused, documents.len());
    assert!(compared > count / 3, "most documents can be read");
}
