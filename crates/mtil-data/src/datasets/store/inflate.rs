//! Random access to the content of gzip (RFC 1952) and deflate (RFC 1951) streams.
//!
//! One pass over the stream takes snapshots of the decoder between two deflate blocks, as `zran.c`
//! in zlib's examples does. Reading starts at the last snapshot before the wanted byte. A snapshot
//! needs the 32 KiB before it, but later blocks refer to few of them in images, which hardly
//! compress: the bytes that are never referred to are cleared and the rest is compressed, which
//! makes snapshots small enough to lie close together.

use std::{
    io::{self, Read},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use flate2::Crc;
use miniz_oxide::{
    deflate::compress_to_vec,
    inflate::{
        TINFLStatus,
        core::{
            BlockBoundaryState, DecompressorOxide, decompress_with_limit,
            inflate_flags::{TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY},
        },
        decompress_to_vec_with_limit,
    },
};

use super::random::{RandomRead, check_range};

/// Farthest that deflate refers back.
const WINDOW: usize = 32 << 10;
/// Input read at a time.
const CHUNK: usize = 32 << 10;
/// Longest gzip header that is read; the format sets no limit to the name and the comment.
const MAX_HEADER: u64 = 128 << 10;
/// Decoders that are kept where they stopped, about 80 KB each.
const POSITIONS: usize = 16;

/// How the snapshots of a stream are spaced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spacing {
    /// Bytes of output between two snapshots to begin with.
    pub(super) first: u64,
    /// Most bytes of memory that the snapshots take. Beyond it every other snapshot is dropped and
    /// the distance doubled.
    pub(super) memory: usize,
}

/// A snapshot of a stream of JPEGs takes about 2 KB, so that 64 MiB do for tens of gigabytes.
impl Default for Spacing {
    fn default() -> Self {
        Self {
            first: 512 << 10,
            memory: 64 << 20,
        }
    }
}

/// What is around the deflate stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapping {
    /// gzip members, one after the other.
    Gzip,
    /// Nothing: a member of a zip, whose directory tells the checksum.
    Zip {
        /// CRC-32 of the content.
        crc: u32,
    },
}

/// Where a decoder stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before a gzip header, or before nothing at all.
    Header,
    Body,
    Trailer,
    End,
}

/// What a step of a decoder ended at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Middle,
    /// Between two blocks or two gzip members.
    Boundary,
    End,
}

/// A decoder that goes forward only.
struct Inflater {
    source: Arc<dyn RandomRead>,
    wrapping: Wrapping,
    input: Vec<u8>,
    /// Bytes of `input` that are used up.
    used: usize,
    /// Where in the source `input` ends.
    next: u64,
    stage: Stage,
    machine: Box<DecompressorOxide>,
    /// The last [`WINDOW`] bytes of output; byte `i` of the output is at `i % WINDOW`.
    ring: Box<[u8]>,
    /// Bytes of output so far.
    produced: u64,
    /// `produced` at the beginning of the current member.
    member: u64,
    /// Checksum of the current member, in the indexing pass.
    crc: Option<Crc>,
}

impl Inflater {
    fn new(source: Arc<dyn RandomRead>, wrapping: Wrapping) -> Self {
        Self {
            source,
            wrapping,
            input: Vec::new(),
            used: 0,
            next: 0,
            stage: Stage::Header,
            machine: Box::default(),
            ring: vec![0; WINDOW].into(),
            produced: 0,
            member: 0,
            crc: None,
        }
    }

    /// A decoder that goes on at `snapshot`, after the bytes `window`.
    fn resume(
        source: Arc<dyn RandomRead>,
        wrapping: Wrapping,
        snapshot: &Snapshot,
        window: &[u8],
    ) -> Self {
        let mut inflater = Self::new(source, wrapping);
        inflater.next = snapshot.input;
        inflater.produced = snapshot.output;
        if let Some((num_bits, bit_buf)) = snapshot.bits {
            inflater.stage = Stage::Body;
            *inflater.machine = DecompressorOxide::from_block_boundary_state(&BlockBoundaryState {
                num_bits,
                bit_buf,
                ..BlockBoundaryState::default()
            });
        }
        let start = (snapshot.output % WINDOW as u64) as usize;
        for (i, byte) in window.iter().enumerate() {
            inflater.ring[(start + WINDOW - window.len() + i) % WINDOW] = *byte;
        }
        inflater
    }

    /// Position in the source of the next byte to be decoded.
    fn position(&self) -> u64 {
        self.next - (self.input.len() - self.used) as u64
    }

    /// Makes sure that `input` holds unused bytes; false at the end of the source.
    fn fill(&mut self) -> io::Result<bool> {
        if self.used < self.input.len() {
            return Ok(true);
        }
        let count = (self.source.len() - self.next).min(CHUNK as u64) as usize;
        self.input.resize(count, 0);
        self.used = 0;
        self.source.read_at(self.next, &mut self.input)?;
        self.next += count as u64;
        Ok(count > 0)
    }

    fn ends_early(&self) -> io::Error {
        let stream = match self.wrapping {
            Wrapping::Gzip => "gzip",
            Wrapping::Zip { .. } => "deflate",
        };
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "its {stream} stream ends early at byte {}: half downloaded? Download it again",
                self.position()
            ),
        )
    }

    fn byte(&mut self) -> io::Result<u8> {
        if !self.fill()? {
            return Err(self.ends_early());
        }
        self.used += 1;
        Ok(self.input[self.used - 1])
    }

    fn u32(&mut self) -> io::Result<u32> {
        let mut value = 0;
        for shift in [0, 8, 16, 24] {
            value |= u32::from(self.byte()?) << shift;
        }
        Ok(value)
    }

    /// Reads a gzip header; false when there is none, at the end.
    fn header(&mut self) -> io::Result<bool> {
        let start = self.position();
        if start > 0 {
            // Zeros may follow the last member.
            while self.fill()? && self.input[self.used] == 0 {
                self.used += 1;
            }
            if !self.fill()? {
                return Ok(false);
            }
        }
        let start = self.position();
        for expected in [0x1f, 0x8b, 8] {
            if self.byte()? != expected {
                return Err(invalid(format!(
                    "what is at byte {start} is no gzip header: download it again"
                )));
            }
        }
        let flags = self.byte()?;
        // Time, compression level, system.
        for _ in 0..6 {
            self.byte()?;
        }
        if flags & 4 != 0 {
            let length = u16::from_le_bytes([self.byte()?, self.byte()?]);
            for _ in 0..length {
                self.byte()?;
            }
        }
        for flag in [8, 16] {
            while flags & flag != 0 && self.byte()? != 0 {
                if self.position() - start > MAX_HEADER {
                    return Err(invalid(format!(
                        "the gzip header at byte {start} does not end"
                    )));
                }
            }
        }
        if flags & 2 != 0 {
            self.byte()?;
            self.byte()?;
        }
        Ok(true)
    }

    fn trailer(&mut self) -> io::Result<()> {
        let size = self.produced - self.member;
        let (crc, length) = match self.wrapping {
            Wrapping::Gzip => (self.u32()?, self.u32()?),
            Wrapping::Zip { crc } => (crc, size as u32),
        };
        if let Some(own) = &mut self.crc {
            if own.sum() != crc || size as u32 != length {
                return Err(invalid(format!(
                    "its checksum is wrong at byte {}: it is damaged, download it again",
                    self.position()
                )));
            }
            own.reset();
        }
        Ok(())
    }

    /// Decodes at most `most` bytes, which must not be 0, into `ring`. Tells where in `ring` they
    /// are, possibly nowhere, and what comes next.
    fn step(&mut self, most: usize, stop_at_blocks: bool) -> io::Result<(Range<usize>, At)> {
        let out = (self.produced % WINDOW as u64) as usize;
        match self.stage {
            Stage::Header => {
                if self.wrapping == Wrapping::Gzip && !self.header()? {
                    self.stage = Stage::End;
                    return Ok((out..out, At::End));
                }
                self.machine.init();
                self.member = self.produced;
                self.stage = Stage::Body;
                Ok((out..out, At::Middle))
            }
            Stage::Body => {
                if !self.fill()? {
                    return Err(self.ends_early());
                }
                let mut flags = TINFL_FLAG_HAS_MORE_INPUT;
                if stop_at_blocks {
                    flags |= TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
                }
                let input = &self.input[self.used..];
                let (status, read, written) = decompress_with_limit(
                    &mut self.machine,
                    input,
                    &mut self.ring,
                    out,
                    most,
                    flags,
                );
                self.used += read;
                self.produced += written as u64;
                let bytes = out..out + written;
                if let Some(crc) = &mut self.crc {
                    crc.update(&self.ring[bytes.clone()]);
                }
                let at = match status {
                    TINFLStatus::Done => {
                        self.stage = Stage::Trailer;
                        At::Middle
                    }
                    TINFLStatus::BlockBoundary => At::Boundary,
                    TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => At::Middle,
                    _ => {
                        return Err(invalid(format!(
                            "its compressed data is damaged before byte {}: download it again",
                            self.position()
                        )));
                    }
                };
                Ok((bytes, at))
            }
            Stage::Trailer => {
                self.trailer()?;
                self.stage = match self.wrapping {
                    Wrapping::Gzip => Stage::Header,
                    Wrapping::Zip { .. } => Stage::End,
                };
                Ok((out..out, At::Boundary))
            }
            Stage::End => Ok((out..out, At::End)),
        }
    }

    /// The last bytes of output, at most [`WINDOW`].
    fn window(&self) -> Vec<u8> {
        let (new, old) = self.ring.split_at((self.produced % WINDOW as u64) as usize);
        let mut window = [old, new].concat();
        if let Ok(produced) = usize::try_from(self.produced)
            && produced < WINDOW
        {
            window.drain(..WINDOW - produced);
        }
        window
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// A decoder between two blocks, or before a gzip header.
struct Snapshot {
    /// Bytes of output before it.
    output: u64,
    /// Bytes of input before it.
    input: u64,
    /// Number of bits already taken from the input, and these bits; none before a header.
    bits: Option<(u8, u8)>,
    /// The bytes before it that are referred to later, others zero; deflated.
    window: Box<[u8]>,
}

impl Snapshot {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.window.len()
    }
}

/// Which bytes of the window at `snapshot` later output is copied from.
///
/// The next 32 KiB of output are decoded three times, after windows that hold the low byte of each
/// position, its high byte, and the inverted low byte. An output byte that differs between the
/// first and the last is a copy, and the first two say of what. After 32 KiB the window is out of
/// reach.
fn referred(source: &Arc<dyn RandomRead>, wrapping: Wrapping, snapshot: &Snapshot) -> Vec<bool> {
    let low: Vec<u8> = (0..WINDOW).map(|i| i as u8).collect();
    let high: Vec<u8> = (0..WINDOW).map(|i| (i >> 8) as u8).collect();
    let inverted: Vec<u8> = low.iter().map(|byte| !byte).collect();
    let [low, high, inverted] = [low, high, inverted].map(|window| {
        let mut inflater = Inflater::resume(Arc::clone(source), wrapping, snapshot, &window);
        let mut output = Vec::with_capacity(WINDOW);
        while output.len() < WINDOW {
            // An error is found again by whoever decodes in earnest.
            let Ok((bytes, _)) = inflater.step(WINDOW - output.len(), false) else {
                break;
            };
            output.extend_from_slice(&inflater.ring[bytes]);
            if inflater.stage != Stage::Body {
                // The next member does not refer to this one.
                break;
            }
        }
        output
    });
    let mut referred = vec![false; WINDOW];
    for ((low, high), inverted) in low.iter().zip(&high).zip(&inverted) {
        if low != inverted {
            referred[usize::from(*low) | usize::from(*high & 0x7f) << 8] = true;
        }
    }
    referred
}

/// The pass over a stream that takes the snapshots. Reads as the content.
pub(super) struct Indexer {
    inflater: Inflater,
    snapshots: Vec<Snapshot>,
    spacing: Spacing,
    /// Memory of the snapshots in bytes.
    held: usize,
    /// Part of the decoder's ring that is yet to be read.
    ready: Range<usize>,
}

impl Indexer {
    pub(super) fn new(source: Arc<dyn RandomRead>, wrapping: Wrapping, spacing: Spacing) -> Self {
        let mut inflater = Inflater::new(source, wrapping);
        inflater.crc = Some(Crc::new());
        let start = Snapshot {
            output: 0,
            input: 0,
            bits: None,
            window: Box::default(),
        };
        Self {
            held: start.bytes(),
            inflater,
            snapshots: vec![start],
            spacing,
            ready: 0..0,
        }
    }

    /// Decodes on when nothing is ready; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        while self.ready.is_empty() {
            let (bytes, at) = self.inflater.step(WINDOW, true)?;
            self.ready = bytes;
            match at {
                At::End => return Ok(false),
                At::Boundary => self.consider(),
                At::Middle => {}
            }
        }
        Ok(true)
    }

    /// Takes a snapshot if the last is far enough away.
    fn consider(&mut self) {
        let inflater = &self.inflater;
        let last = self.snapshots.last().map_or(0, |last| last.output);
        if inflater.produced - last < self.spacing.first || inflater.stage == Stage::End {
            return;
        }
        let bits = match inflater.machine.block_boundary_state() {
            Some(state) if inflater.stage == Stage::Body => Some((state.num_bits, state.bit_buf)),
            _ => None,
        };
        let mut snapshot = Snapshot {
            output: inflater.produced,
            input: inflater.position(),
            bits,
            window: Box::default(),
        };
        if bits.is_some() {
            let referred = referred(&inflater.source, inflater.wrapping, &snapshot);
            let mut window = inflater.window();
            let absent = WINDOW - window.len();
            for (byte, referred) in window.iter_mut().zip(&referred[absent..]) {
                *byte *= u8::from(*referred);
            }
            snapshot.window = compress_to_vec(&window, 6).into();
        }
        self.held += snapshot.bytes();
        self.snapshots.push(snapshot);
        while self.held > self.spacing.memory && self.snapshots.len() > 1 {
            let mut keep = false;
            self.snapshots.retain(|_| {
                // The first one stays: it is the beginning.
                keep = !keep;
                keep
            });
            self.held = self.snapshots.iter().map(Snapshot::bytes).sum();
            self.spacing.first *= 2;
        }
    }

    /// Passes over `count` bytes.
    ///
    /// # Errors
    /// Those of reading; `UnexpectedEof` when there are fewer bytes.
    pub(super) fn skip(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            if !self.advance()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = count.min(self.ready.len() as u64);
            self.ready.start += step as usize;
            count -= step;
        }
        Ok(())
    }

    /// Goes on to the end, which checks the rest of the stream.
    pub(super) fn finish(mut self) -> io::Result<Inflated> {
        while self.advance()? {
            self.ready.start = self.ready.end;
        }
        self.snapshots.shrink_to_fit();
        Ok(Inflated {
            len: self.inflater.produced,
            source: self.inflater.source,
            wrapping: self.inflater.wrapping,
            snapshots: self.snapshots,
            positions: Mutex::default(),
        })
    }
}

impl Read for Indexer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || !self.advance()? {
            return Ok(0);
        }
        let count = buf.len().min(self.ready.len());
        buf[..count].copy_from_slice(&self.inflater.ring[self.ready.start..][..count]);
        self.ready.start += count;
        Ok(count)
    }
}

/// The content of a compressed stream.
pub(super) struct Inflated {
    source: Arc<dyn RandomRead>,
    wrapping: Wrapping,
    len: u64,
    /// In the order of their output; the first is the beginning.
    snapshots: Vec<Snapshot>,
    /// Decoders where they stopped, the longest unused first: what follows the last read costs no
    /// restart.
    positions: Mutex<Vec<Inflater>>,
}

impl Inflated {
    /// A decoder that stands at or before `offset`, as near as there is one.
    fn decoder_before(&self, offset: u64) -> io::Result<Inflater> {
        let after = self.snapshots.partition_point(|s| s.output <= offset);
        let snapshot = &self.snapshots[after - 1];
        {
            let mut positions = self
                .positions
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let best = (0..positions.len())
                .filter(|&i| (snapshot.output..=offset).contains(&positions[i].produced))
                .max_by_key(|&i| positions[i].produced);
            if let Some(best) = best {
                return Ok(positions.remove(best));
            }
        }
        let window = match &*snapshot.window {
            [] => Vec::new(),
            window => decompress_to_vec_with_limit(window, WINDOW)
                .map_err(|_| invalid("a snapshot of it is damaged".into()))?,
        };
        let source = Arc::clone(&self.source);
        Ok(Inflater::resume(source, self.wrapping, snapshot, &window))
    }

    /// Memory of the snapshots in bytes.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.snapshots.iter().map(Snapshot::bytes).sum()
    }
}

impl RandomRead for Inflated {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(offset, buf.len(), self.len)?;
        let mut inflater = self.decoder_before(offset)?;
        let mut filled = 0;
        while filled < buf.len() {
            let skip = offset.saturating_sub(inflater.produced);
            let most = if skip > 0 {
                skip.min(WINDOW as u64) as usize
            } else {
                buf.len() - filled
            };
            let (bytes, at) = inflater.step(most, false)?;
            if skip == 0 {
                buf[filled..][..bytes.len()].copy_from_slice(&inflater.ring[bytes.clone()]);
                filled += bytes.len();
            }
            if at == At::End && filled < buf.len() {
                return Err(invalid("it has changed since it was indexed".into()));
            }
        }
        let mut positions = self
            .positions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if positions.len() == POSITIONS {
            positions.remove(0);
        }
        positions.push(inflater);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        sync::atomic::{AtomicU64, Ordering},
    };

    use flate2::{Compression, write::GzEncoder};

    use super::{super::random::tests::Memory, *};

    const CLOSE: Spacing = Spacing {
        first: 4 << 10,
        memory: 1 << 20,
    };

    /// Noise with copies of earlier noise in it, some of them far back.
    fn content(size: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = move || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as usize
        };
        let mut bytes: Vec<u8> = Vec::with_capacity(size);
        while bytes.len() < size {
            if bytes.len() > 40_000 && next() % 3 == 0 {
                let from = bytes.len() - 1 - next() % 32_000;
                let until = (from + 3 + next() % 200).min(bytes.len());
                bytes.extend_from_within(from..until);
            } else {
                bytes.extend((0..200).map(|_| next() as u8));
            }
        }
        bytes.truncate(size);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn indexed(packed: Vec<u8>, spacing: Spacing) -> io::Result<Inflated> {
        Indexer::new(Arc::new(Memory(packed)), Wrapping::Gzip, spacing).finish()
    }

    fn check_ranges(inflated: &Inflated, bytes: &[u8]) {
        assert_eq!(inflated.len(), bytes.len() as u64);
        for i in 0..60 {
            let start = i * 7919 * 13 % bytes.len();
            let count = (i * 997 % 40_000).min(bytes.len() - start);
            let mut buf = vec![0; count];
            inflated.read_at(start as u64, &mut buf).unwrap();
            assert!(buf == bytes[start..][..count], "{start}+{count}");
            // The next read must not start where this one stopped.
            inflated.positions.lock().unwrap().clear();
        }
    }

    #[test]
    fn reads_anywhere_from_snapshots_that_hold_only_what_is_referred_to() {
        let bytes = content(600_000);
        let inflated = indexed(gzip(&bytes), CLOSE).unwrap();
        let count = inflated.snapshots.len();
        assert!(count > 5, "{count}");
        check_ranges(&inflated, &bytes);
        let windows: usize = inflated.snapshots.iter().map(|s| s.window.len()).sum();
        assert!(
            windows < count * WINDOW / 2,
            "{windows} bytes for {count} snapshots"
        );
        let mut beyond = [0; 2];
        let error = inflated
            .read_at(bytes.len() as u64 - 1, &mut beyond)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn snapshots_stay_within_their_memory() {
        let bytes = content(600_000);
        let spacing = Spacing {
            first: 1,
            memory: 60_000,
        };
        let inflated = indexed(gzip(&bytes), spacing).unwrap();
        assert!(inflated.held() <= spacing.memory, "{}", inflated.held());
        assert!(inflated.snapshots.len() > 2);
        assert_eq!(inflated.snapshots[0].output, 0);
        check_ranges(&inflated, &bytes);
    }

    #[test]
    fn members_follow_each_other_and_zeros_may_follow_them() {
        let bytes = content(300_000);
        let mut packed: Vec<u8> = bytes.chunks(5000).flat_map(gzip).collect();
        packed.extend([0; 700]);
        let inflated = indexed(packed.clone(), CLOSE).unwrap();
        assert!(inflated.snapshots.len() > 40, "one each member or two");
        check_ranges(&inflated, &bytes);
        packed.push(b'x');
        let error = indexed(packed, CLOSE).err().unwrap().to_string();
        assert!(error.contains("no gzip header"), "{error}");
    }

    #[test]
    fn the_pass_reads_and_skips() {
        let bytes = content(200_000);
        let mut indexer = Indexer::new(Arc::new(Memory(gzip(&bytes))), Wrapping::Gzip, CLOSE);
        let mut head = [0; 700];
        indexer.read_exact(&mut head).unwrap();
        assert_eq!(head, bytes[..700]);
        indexer.skip(100_001).unwrap();
        let mut rest = Vec::new();
        indexer.read_to_end(&mut rest).unwrap();
        assert!(rest == bytes[100_701..]);
        let error = indexer.skip(1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    /// Bytes that count how many of them were read.
    struct Counted(Memory, AtomicU64);

    impl RandomRead for Counted {
        fn len(&self) -> u64 {
            self.0.len()
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
            self.0.read_at(offset, buf)
        }
    }

    #[test]
    fn neighbours_are_read_without_starting_again() {
        let bytes = content(600_000);
        let packed = gzip(&bytes);
        let length = packed.len() as u64;
        let source = Arc::new(Counted(Memory(packed), AtomicU64::new(0)));
        let wide = Spacing {
            first: 1 << 30,
            ..CLOSE
        };
        let indexer = Indexer::new(Arc::clone(&source) as _, Wrapping::Gzip, wide);
        let inflated = indexer.finish().unwrap();
        source.1.store(0, Ordering::Relaxed);
        // Two readers, as two halves of a dataset are read in turn.
        let half = bytes.len() / 2;
        let mut buf = [0; 1000];
        for i in 0..half / 1000 {
            for start in [i * 1000, half + i * 1000] {
                inflated.read_at(start as u64, &mut buf).unwrap();
                assert!(buf == bytes[start..start + 1000]);
            }
        }
        let read = source.1.load(Ordering::Relaxed);
        // The second reader once decodes the first half to get to its place.
        assert!(read < 2 * length, "{read} of {length}");
    }

    #[test]
    fn truncated_streams_are_refused_with_the_place() {
        let packed = gzip(&content(100_000));
        for end in (0..packed.len())
            .step_by(311)
            .chain(packed.len() - 9..packed.len())
        {
            let error = indexed(packed[..end].to_vec(), CLOSE)
                .err()
                .unwrap()
                .to_string();
            let place = format!("gzip stream ends early at byte {end}: half downloaded?");
            assert!(error.contains(&place), "{end}: {error}");
        }
    }

    #[test]
    fn damage_is_found() {
        let bytes = content(100_000);
        let packed = gzip(&bytes);
        let mut found = 0;
        let places = (10..packed.len()).step_by(97);
        for at in places.clone() {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x10;
            match indexed(damaged, CLOSE) {
                Err(_) => found += 1,
                // Some bits of the format have no meaning.
                Ok(inflated) => {
                    let mut content = vec![0; inflated.len() as usize];
                    inflated.read_at(0, &mut content).unwrap();
                    assert!(content == bytes, "{at}");
                }
            }
        }
        assert!(found + 3 > places.len(), "{found} of {}", places.len());
        let mut wrong = packed.clone();
        let end = wrong.len();
        wrong[end - 5] ^= 1;
        let error = indexed(wrong, CLOSE).err().unwrap().to_string();
        assert!(error.contains("checksum"), "{error}");
    }

    #[test]
    fn headers_with_everything_are_read_and_endless_ones_refused() {
        let plain = gzip(b"hello");
        let mut full = b"\x1f\x8b\x08\x1e\0\0\0\0\0\x03\x03\0ABCname\0comment\0\0\0".to_vec();
        full.extend(&plain[10..]);
        assert_eq!(indexed(full, CLOSE).unwrap().len(), 5);
        let mut endless = b"\x1f\x8b\x08\x08\0\0\0\0\0\x03".to_vec();
        endless.resize(1 << 20, b'x');
        let error = indexed(endless, CLOSE).err().unwrap().to_string();
        assert!(error.contains("does not end"), "{error}");
    }
}
