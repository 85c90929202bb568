//! Requests of the FUSE device over io_uring: one slot for one request at a time, filled and
//! emptied by one system call.
//!
//! A [`FuseRing`] registers itself with one of the kernel's queues (there is one for each
//! processor). From then on each [`FuseRing::exchange`] sends the reply to the last request and
//! sleeps until the next. A request arrives in pieces (header, fixed part, names and data); here
//! they are put one after the other, as a read of the device returns them, so readers need not know
//! how they came. Messages are not interpreted here. Layouts and numbers are from the kernel's
//! `include/uapi/linux/fuse.h` and `io_uring.h`; they are ABI.
//!
//! Soundness: the kernel writes to a ring's memory only inside `io_uring_enter`, called by the
//! thread that created the ring (`SINGLE_ISSUER` and `DEFER_TASKRUN` promise both), and that call
//! borrows the ring mutably: no slice of its memory lives across it.

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::io_uring::{
    self, IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringFeatureFlags,
    IoringSetupFlags, io_uring_params,
};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::CpuSet;

use crate::fuse_dev::DEVICE;
use crate::{Error, Result};

/// `IORING_OP_URING_CMD`.
const OP_URING_CMD: u8 = 46;
/// `FUSE_IO_URING_CMD_REGISTER`, `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// One submission, of the long form.
const SQE_BYTES: usize = 128;

/// `struct fuse_uring_req_header`: the header of request or reply, the fixed part, and `struct
/// fuse_uring_ent_in_out`.
const OP_AT: usize = 128;
const OP_MAX_BYTES: usize = 128;
const COMMIT_ID_AT: usize = 256 + 8;
const PAYLOAD_SIZE_AT: usize = 256 + 16;
const HEADERS_BYTES: usize = 288;
/// Two `struct iovec`, after the headers.
const VECTORS_AT: usize = 512;
/// `struct fuse_in_header`, `struct fuse_out_header`.
const IN_HEADER_BYTES: usize = 40;
const OUT_HEADER_BYTES: usize = 16;

const PAGE_BYTES: usize = 4096;
/// Where names and data arrive, and where bodies of replies are sent from: page-aligned, with space
/// for headers before it.
const PAYLOAD_AT: usize = 2 * PAGE_BYTES;

/// The result of waiting for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// A request is here.
    Request,
    /// The file system was unmounted, or the connection was aborted.
    Gone,
}

/// A slot for one request of one queue. It belongs to the thread that created it.
#[derive(Debug)]
pub struct FuseRing {
    ring: OwnedFd,
    device: OwnedFd,
    queue: u16,
    payload_bytes: usize,
    memory: Mapping,
    queues: Mapping,
    submissions: Mapping,
    at: Offsets,
    /// The commit id of the current request, or `None` before the first.
    current: Option<u64>,
    /// Where the request is, in `memory`.
    request: (usize, usize),
    /// Only one thread may use the ring.
    not_send: PhantomData<*const ()>,
}

/// Offsets in the mapping of the queues.
#[derive(Debug)]
struct Offsets {
    sq_head: usize,
    sq_tail: usize,
    cq_head: usize,
    cq_tail: usize,
    cq_mask: u32,
    cqes: usize,
}

/// Returns whether this process may create rings with the required features.
pub fn is_possible() -> bool {
    setup().is_ok()
}

/// Returns how many queues the kernel has: one for every possible processor.
pub fn queue_count() -> Result<u16> {
    const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
    let read = |error: std::io::Error| Error::new("read", POSSIBLE, error);
    let text = std::fs::read_to_string(POSSIBLE).map_err(read)?;
    let last = text.trim().rsplit([',', '-']).next().unwrap_or_default();
    let last: u16 = last
        .parse()
        .map_err(|_| read(std::io::Error::from(std::io::ErrorKind::InvalidData)))?;
    Ok(last.saturating_add(1))
}

/// Where a thread may run: on one processor, or wherever it could when this was created.
#[derive(Debug)]
pub struct Post {
    anywhere: CpuSet,
    here: CpuSet,
    stays: bool,
}

impl Post {
    /// Pins this thread to one processor. Errors: EINVAL if the processor does not exist or this
    /// process may not use it.
    pub fn on(processor: u16) -> Result<Post> {
        let failed = |error| Error::new("pin a thread to", "one processor", error);
        let processor = usize::from(processor);
        if processor >= CpuSet::MAX_CPU {
            return Err(failed(Errno::INVAL));
        }
        let anywhere = rustix::thread::sched_getaffinity(None).map_err(failed)?;
        let mut here = CpuSet::new();
        here.set(processor);
        rustix::thread::sched_setaffinity(None, &here).map_err(failed)?;
        Ok(Post {
            anywhere,
            here,
            stays: true,
        })
    }

    /// Pins or unpins this thread, which must have created the post. Makes a system call only if
    /// that is a change.
    pub fn stay(&mut self, stays: bool) -> Result<()> {
        if stays == self.stays {
            return Ok(());
        }
        let set = if stays { &self.here } else { &self.anywhere };
        rustix::thread::sched_setaffinity(None, set)
            .map_err(|error| Error::new("move to", "another processor", error))?;
        self.stays = stays;
        Ok(())
    }
}

fn setup() -> Result<(OwnedFd, io_uring_params)> {
    let mut params = io_uring_params::default();
    params.flags = IoringSetupFlags::SQE128
        | IoringSetupFlags::SINGLE_ISSUER
        | IoringSetupFlags::DEFER_TASKRUN;
    // SAFETY: the only address passed is that of the parameters, which live through the call.
    let ring = unsafe { io_uring::io_uring_setup(1, &mut params) }.map_err(io("create"))?;
    match params.features.contains(IoringFeatureFlags::SINGLE_MMAP) {
        true => Ok((ring, params)),
        false => Err(Error::new("create", "a ring", Errno::NOSYS)),
    }
}

fn io(op: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::new(op, "a ring", errno)
}

impl FuseRing {
    /// Creates a slot for requests of `queue` on a mounted connection. `payload_bytes` is the most
    /// data of one request or reply, as INIT said.
    ///
    /// Nothing arrives before the first [`FuseRing::exchange`].
    pub fn new(device: impl AsFd, queue: u16, payload_bytes: usize) -> Result<FuseRing> {
        let (ring, params) = setup()?;
        let device = rustix::io::fcntl_dupfd_cloexec(device, 3)
            .map_err(|e| Error::new("copy", DEVICE, e))?;
        let (sq, cq) = (params.sq_off, params.cq_off);
        let sq_end = sq.array as usize + params.sq_entries as usize * 4;
        let cq_end = cq.cqes as usize + params.cq_entries as usize * 16;
        let queues = Mapping::of(&ring, sq_end.max(cq_end), IORING_OFF_SQ_RING)?;
        let submissions = Mapping::of(
            &ring,
            params.sq_entries as usize * SQE_BYTES,
            IORING_OFF_SQES,
        )?;
        let memory = Mapping::anonymous(PAYLOAD_AT + payload_bytes.next_multiple_of(PAGE_BYTES))?;
        let mut made = FuseRing {
            ring,
            device,
            queue,
            payload_bytes,
            memory,
            at: Offsets {
                sq_head: sq.head as usize,
                sq_tail: sq.tail as usize,
                cq_head: cq.head as usize,
                cq_tail: cq.tail as usize,
                cq_mask: queues.u32_at(cq.ring_mask as usize),
                cqes: cq.cqes as usize,
            },
            queues,
            submissions,
            current: None,
            request: (PAYLOAD_AT, PAYLOAD_AT),
            not_send: PhantomData,
        };
        // The first and only slot is always the first submission.
        made.queues
            .bytes(sq.array as usize, 4)
            .copy_from_slice(&0u32.to_ne_bytes());
        let base = made.memory.start.as_ptr().addr() as u64;
        let vectors = [
            (base, HEADERS_BYTES as u64),
            (base + PAYLOAD_AT as u64, payload_bytes as u64),
        ];
        let place = made.memory.bytes(VECTORS_AT, 32);
        for (place, (start, length)) in place.chunks_exact_mut(16).zip(vectors) {
            place[..8].copy_from_slice(&start.to_ne_bytes());
            place[8..].copy_from_slice(&length.to_ne_bytes());
        }
        Ok(made)
    }

    /// Sends the reply to the current request, if there is one, and waits for the next.
    ///
    /// The reply is what [`FuseRing::reply`] or [`FuseRing::reply_in_place`] put.
    pub fn exchange(&mut self) -> Result<Arrived> {
        let (command, commit_id) = match self.current.take() {
            None => (REGISTER, 0),
            Some(id) => (COMMIT_AND_FETCH, id),
        };
        self.submit(command, commit_id);
        let result = self.complete()?;
        if result >= 0 {
            self.lay_out()?;
            return Ok(Arrived::Request);
        }
        match Errno::from_raw_os_error(-result) {
            Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED | Errno::NODEV => {
                Ok(Arrived::Gone)
            }
            errno => Err(Error::new("take requests from", DEVICE, errno)),
        }
    }

    /// Returns the request, as a read of the device would return it, and space for the reply with
    /// its header, unless the request occupies that space.
    pub fn parts(&mut self) -> (&[u8], Option<&mut [u8]>) {
        let (start, end) = self.request;
        let split = PAYLOAD_AT - OUT_HEADER_BYTES;
        let whole = self.memory.bytes(0, PAYLOAD_AT + self.payload_bytes);
        match end <= split {
            true => {
                let (request, place) = whole.split_at_mut(split);
                (&request[start..end], Some(place))
            }
            false => (&whole[start..end], None),
        }
    }

    /// Uses the first `length` bytes of the space that [`FuseRing::parts`] returned as the reply.
    pub fn reply_in_place(&mut self, length: usize) {
        let start = PAYLOAD_AT - OUT_HEADER_BYTES;
        let header: [u8; OUT_HEADER_BYTES] =
            std::array::from_fn(|i| self.memory.bytes(start, OUT_HEADER_BYTES)[i]);
        self.put_header(&header, length - OUT_HEADER_BYTES);
    }

    /// Uses a copy of `bytes`, header and body, as the reply. A body that is too long is cut.
    pub fn reply(&mut self, bytes: &[u8]) {
        let (header, body) = bytes.split_at(OUT_HEADER_BYTES.min(bytes.len()));
        let length = body.len().min(self.payload_bytes);
        self.memory
            .bytes(PAYLOAD_AT, length)
            .copy_from_slice(&body[..length]);
        self.put_header(header, length);
    }

    fn put_header(&mut self, header: &[u8], body_bytes: usize) {
        self.memory.bytes(0, header.len()).copy_from_slice(header);
        self.memory
            .bytes(PAYLOAD_SIZE_AT, 4)
            .copy_from_slice(&(body_bytes as u32).to_ne_bytes());
    }

    fn submit(&mut self, command: u32, commit_id: u64) {
        let mut sqe = [0; SQE_BYTES];
        sqe[0] = OP_URING_CMD;
        sqe[4..8].copy_from_slice(&self.device.as_raw_fd().to_ne_bytes());
        sqe[8..12].copy_from_slice(&command.to_ne_bytes());
        if command == REGISTER {
            let vectors = (self.memory.start.as_ptr().addr() + VECTORS_AT) as u64;
            sqe[16..24].copy_from_slice(&vectors.to_ne_bytes());
            sqe[24..28].copy_from_slice(&2u32.to_ne_bytes());
        }
        // struct fuse_uring_cmd_req.
        sqe[56..64].copy_from_slice(&commit_id.to_ne_bytes());
        sqe[64..66].copy_from_slice(&self.queue.to_ne_bytes());
        self.submissions.bytes(0, SQE_BYTES).copy_from_slice(&sqe);
        let tail = self.queues.atomic(self.at.sq_tail);
        tail.store(
            tail.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Release,
        );
    }

    /// Submits and waits for the result.
    fn complete(&mut self) -> Result<i32> {
        loop {
            let head = self.queues.atomic(self.at.sq_head).load(Ordering::Acquire);
            let tail = self.queues.atomic(self.at.sq_tail).load(Ordering::Relaxed);
            let waiting = tail.wrapping_sub(head);
            // SAFETY: the submission names memory of this value, which lives as long as the ring
            // (dropping the ring's descriptor ends the command); nothing in it is borrowed now
            // (`&mut self`).
            let entered = unsafe {
                io_uring::io_uring_enter(&self.ring, waiting, 1, IoringEnterFlags::GETEVENTS)
            };
            match entered {
                Ok(_) | Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => {}
                Err(errno) => return Err(io("wait at")(errno)),
            }
            let head = self.queues.atomic(self.at.cq_head).load(Ordering::Relaxed);
            let tail = self.queues.atomic(self.at.cq_tail).load(Ordering::Acquire);
            if head != tail {
                let slot = (head & self.at.cq_mask) as usize;
                let result = self.queues.u32_at(self.at.cqes + slot * 16 + 8) as i32;
                let taken = head.wrapping_add(1);
                self.queues
                    .atomic(self.at.cq_head)
                    .store(taken, Ordering::Release);
                return Ok(result);
            }
        }
    }

    /// Puts the pieces of a request one after the other.
    fn lay_out(&mut self) -> Result<()> {
        self.current = Some(u64::from_ne_bytes(self.memory.array(COMMIT_ID_AT)));
        let length = self.memory.u32_at(0) as usize;
        let payload = self.memory.u32_at(PAYLOAD_SIZE_AT) as usize;
        let fixed = length.checked_sub(IN_HEADER_BYTES + payload);
        let Some(fixed) = fixed.filter(|&fixed| fixed <= OP_MAX_BYTES) else {
            return Err(Error::new("parse a request from", DEVICE, Errno::PROTO));
        };
        // A request without names or data stays clear of the space for the reply.
        let end = match payload {
            0 => PAYLOAD_AT - OUT_HEADER_BYTES,
            _ => PAYLOAD_AT,
        };
        let start = end - fixed - IN_HEADER_BYTES;
        let all = self.memory.bytes(0, PAYLOAD_AT);
        all.copy_within(OP_AT..OP_AT + fixed, end - fixed);
        all.copy_within(0..IN_HEADER_BYTES, start);
        self.request = (start, end + payload.min(self.payload_bytes));
        Ok(())
    }
}

/// Memory mapped for one owner.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn of(ring: &OwnedFd, length: usize, offset: u64) -> Result<Mapping> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                flags,
                ring,
                offset,
            )
        };
        Mapping::new(start.map_err(io("map"))?, length)
    }

    fn anonymous(length: usize) -> Result<Mapping> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as above.
        let start = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, MapFlags::PRIVATE)
        };
        Mapping::new(start.map_err(io("map"))?, length)
    }

    fn new(start: *mut core::ffi::c_void, length: usize) -> Result<Mapping> {
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Mapping { start, length }),
            None => Err(io("map")(Errno::FAULT)),
        }
    }

    /// Returns a part of it. Panics if it is out of range: offsets are this module's own or the
    /// kernel's.
    fn bytes(&mut self, from: usize, length: usize) -> &mut [u8] {
        assert!(from <= self.length && length <= self.length - from);
        // SAFETY: within the mapping, which lives as long as self; borrowed as self is, and the
        // kernel writes to it only inside `complete`, which borrows all of the ring.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(from), length) }
    }

    fn array<const N: usize>(&self, from: usize) -> [u8; N] {
        assert!(from <= self.length && N <= self.length - from);
        // SAFETY: within the mapping; an array of bytes may be read at any address.
        unsafe { self.start.as_ptr().add(from).cast::<[u8; N]>().read() }
    }

    fn u32_at(&self, from: usize) -> u32 {
        u32::from_ne_bytes(self.array(from))
    }

    fn atomic(&self, from: usize) -> &AtomicU32 {
        assert!(from.is_multiple_of(4) && from < self.length && 4 <= self.length - from);
        // SAFETY: within the mapping and aligned; the kernel, too, uses these words as atomic ones.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(from).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no borrow of it outlives the value. The
        // kernel looks up what it still knows of it by address, and finds it gone.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_counted_from_the_last_processor() {
        assert!(queue_count().unwrap() >= 1);
    }

    #[test]
    fn a_ring_without_a_connection_is_refused_harmlessly() {
        if !is_possible() {
            vellum_testkit::untested("rings", "io_uring_setup is refused here");
            return;
        }
        let file = tempfile::tempfile().unwrap();
        let mut ring = FuseRing::new(&file, 0, 8192).unwrap();
        assert!(ring.exchange().is_err());
    }
}
