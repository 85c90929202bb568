//! Requests as the kernel lays them out, and malformed requests.

use std::ffi::OsStr;

use proptest::prelude::*;

use super::request::{Forgets, Range};
use super::*;

/// Builds a request.
struct Raw(Vec<u8>);

impl Raw {
    fn new(opcode: u32, node: u64) -> Raw {
        let mut raw = Raw(Vec::new()).u32(0).u32(opcode).u64(99).u64(node);
        raw = raw.u32(1000).u32(100).u32(4321);
        raw.u32(0)
    }
    fn u32(mut self, value: u32) -> Raw {
        self.0.extend(value.to_ne_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Raw {
        self.0.extend(value.to_ne_bytes());
        self
    }
    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }
    fn done(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0
    }
}

fn parse(bytes: &[u8]) -> Result<Request<'_>, Malformed> {
    Request::parse(bytes, Dialect { setxattr_ext: true })
}

#[test]
fn the_caller_is_in_the_header() {
    let bytes = Raw::new(Opcode::Lookup as u32, 5).bytes(b"name\0").done();
    let request = parse(&bytes).unwrap();
    let h = request.header;
    assert_eq!(
        (h.unique, h.node, h.uid, h.gid, h.pid),
        (99, 5, 1000, 100, 4321)
    );
    assert!(matches!(request.op, Op::Lookup { name } if name == "name"));
}

#[test]
fn names_of_any_bytes_are_read() {
    let bytes = Raw::new(Opcode::Rename2 as u32, 5)
        .u64(6)
        .u32(2)
        .u32(0)
        .bytes(b"\xff\n\0new\0")
        .done();
    let Op::Rename {
        name,
        new_parent,
        new_name,
        flags,
    } = parse(&bytes).unwrap().op
    else {
        panic!()
    };
    assert_eq!(name.as_encoded_bytes(), b"\xff\n");
    assert_eq!((new_name, new_parent, flags), (OsStr::new("new"), 6, 2));
}

#[test]
fn a_write_has_its_data() {
    let bytes = Raw::new(Opcode::Write as u32, 5)
        .u64(1)
        .u64(4096)
        .u32(3)
        .u32(flags::WRITE_KILL_SUIDGID)
        .u64(0)
        .u32(flags::OPENED_TO_APPEND | 1)
        .u32(0)
        .bytes(b"abc")
        .done();
    let Op::Write {
        offset,
        data,
        flags,
        append,
        ..
    } = parse(&bytes).unwrap().op
    else {
        panic!()
    };
    assert_eq!((offset, data, flags), (4096, &b"abc"[..], 4));
    assert!(append);
}

#[test]
fn extensions_are_not_read_as_arguments() {
    let mut bytes = Raw::new(Opcode::MkDir as u32, 5)
        .u32(0o755)
        .u32(0o22)
        .bytes(b"d\0")
        .bytes(&[0; 6])
        .bytes(&[7; 16])
        .done();
    bytes[36] = 2;
    let Op::MkDir { name, mode, umask } = parse(&bytes).unwrap().op else {
        panic!()
    };
    assert_eq!((name, mode, umask), (OsStr::new("d"), 0o755, 0o22));
    bytes[36] = 200;
    assert_eq!(parse(&bytes).unwrap_err(), Malformed::Short);
}

#[test]
fn set_attr_and_reads_are_where_the_kernel_puts_them() {
    let bytes = Raw::new(Opcode::SetAttr as u32, 5)
        .u32(0x7ff)
        .u32(0)
        .u64(0)
        .u64(1234)
        .u64(0)
        .u64(-5i64 as u64)
        .u64(7)
        .u64(8)
        .u32(11)
        .u32(12)
        .u32(13)
        .u32(0o4755)
        .u32(0)
        .u32(17)
        .u32(18)
        .u32(0)
        .done();
    let Op::SetAttr(set) = parse(&bytes).unwrap().op else {
        panic!()
    };
    assert_eq!(set.size_bytes, 1234);
    assert_eq!((set.atime, set.mtime), ((-5, 11), (7, 12)));
    assert_eq!((set.mode, set.uid, set.gid), (0o4755, 17, 18));
    let bytes = Raw::new(Opcode::Read as u32, 5)
        .u64(1)
        .u64(2)
        .u32(3)
        .u32(4)
        .u64(5)
        .u32(6)
        .u32(0)
        .done();
    let Op::Read(range) = parse(&bytes).unwrap().op else {
        panic!()
    };
    let wanted = Range {
        handle: 1,
        offset: 2,
        size_bytes: 3,
        flags: 6,
    };
    assert_eq!(range, wanted);
}

#[test]
fn forgets_come_in_batches() {
    let bytes = Raw::new(Opcode::BatchForget as u32, 0)
        .u32(2)
        .u32(0)
        .u64(3)
        .u64(1)
        .u64(4)
        .u64(9)
        .done();
    let Op::BatchForget(forgets) = parse(&bytes).unwrap().op else {
        panic!()
    };
    let all: Vec<_> = Forgets::collect(forgets);
    assert_eq!(all, [(3, 1), (4, 9)]);
}

#[track_caller]
fn refused(bytes: Vec<u8>, why: Malformed) {
    assert_eq!(parse(&bytes).unwrap_err(), why);
}

#[test]
fn malformed_requests_are_refused() {
    let lookup = || Raw::new(Opcode::Lookup as u32, 1);
    refused(lookup().bytes(b"\0").done(), Malformed::Name);
    refused(lookup().bytes(b"no end").done(), Malformed::Name);
    refused(lookup().bytes(b"../../etc\0").done(), Malformed::Name);
    refused(vec![0; 39], Malformed::Short);
    let mut long = lookup().bytes(b"a\0").done();
    long.push(0);
    let length = Malformed::Length { said: 42, has: 43 };
    refused(long, length);
    let write = Raw::new(Opcode::Write as u32, 1).u64(0).u64(0);
    refused(
        write.u32(u32::MAX).u32(0).u64(0).u64(0).done(),
        Malformed::Short,
    );
    let forgets = Raw::new(Opcode::BatchForget as u32, 1).u32(u32::MAX).u32(0);
    refused(forgets.done(), Malformed::Short);
}

#[test]
fn unknown_operations_are_unsupported() {
    let bytes = Raw::new(4096, 1).done();
    assert!(matches!(parse(&bytes).unwrap().op, Op::Other));
    for &opcode in Opcode::ALL {
        assert_eq!(Opcode::from_number(opcode as u32), Some(opcode));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_or_an_error(opcode in 0u32..60, body in proptest::collection::vec(any::<u8>(), 0..200), ext in 0u8..30, setxattr_ext: bool) {
        let mut bytes = Raw::new(opcode, 1).bytes(&body).done();
        bytes[36] = ext;
        if let Ok(request) = Request::parse(&bytes, Dialect { setxattr_ext }) {
            if let Op::BatchForget(forgets) = request.op {
                prop_assert!(forgets.count() <= body.len() / 16);
            }
            if let Op::Lookup { name } = request.op {
                prop_assert!(!name.is_empty() && !name.as_encoded_bytes().contains(&b'/'));
            }
        }
    }
}
