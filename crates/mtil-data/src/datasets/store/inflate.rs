//! Random access to the content of gzip (RFC 1952) and deflate (RFC 1951) streams.
//!
//! One pass over the stream takes snapshots of the decoder between deflate blocks, as `zran.c` in
//! zlib's examples does. A read starts at the last snapshot before the requested byte. A snapshot
//! needs the window of 32 KiB before it. Since images hardly compress, later blocks reference few
//! bytes of that window. Unreferenced bytes are set to zero and the window is compressed, which
//! makes snapshots small enough for a dense spacing.

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

use super::read_at::{ReadAt, check_range};

/// Size of deflate's window, the maximum distance of a back-reference.
const WINDOW: usize = 32 << 10;
/// Size of the input buffer.
const CHUNK: usize = 32 << 10;
/// Maximum size of a gzip header. The format does not limit the name and the comment.
const MAX_HEADER: u64 = 128 << 10;
/// Number of idle decoders that are kept at their position, about 80 KB each.
const MAX_IDLE_DECODERS: usize = 16;

/// Spacing of the snapshots of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spacing {
    /// Initial distance between two snapshots in bytes of output.
    pub(super) distance: u64,
    /// Memory limit of the snapshots in bytes. Above it, every other snapshot is dropped and the
    /// distance is doubled.
    pub(super) memory: usize,
}

/// A snapshot of a stream of JPEGs takes about 2 KB, so 64 MiB suffice for tens of gigabytes.
impl Default for Spacing {
    fn default() -> Self {
        Self {
            distance: 512 << 10,
            memory: 64 << 20,
        }
    }
}

/// Container format of the deflate stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Container {
    /// A sequence of gzip members.
    Gzip,
    /// A raw stream, the member of a zip archive. Its checksum is in the zip's directory.
    Zip {
        /// CRC-32 of the content.
        crc: u32,
    },
}

/// State of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before a gzip header, or at the start of a raw stream.
    Header,
    Body,
    Trailer,
    End,
}

/// Position in the stream after a step of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamPosition {
    Middle,
    /// Between two blocks or two gzip members.
    Boundary,
    End,
}

/// A sequential decoder.
struct Inflater {
    source: Arc<dyn ReadAt>,
    container: Container,
    input: Vec<u8>,
    /// Number of consumed bytes of `input`.
    used: usize,
    /// Position in the source of the end of `input`.
    next: u64,
    stage: Stage,
    decompressor: Box<DecompressorOxide>,
    /// Ring buffer of the last [`WINDOW`] bytes of output. Byte `i` is at `i % WINDOW`.
    ring: Box<[u8]>,
    /// Number of bytes of output so far.
    produced: u64,
    /// `produced` at the start of the current member.
    member: u64,
    /// Checksum of the current member, in the indexing pass.
    crc: Option<Crc>,
}

impl Inflater {
    fn new(source: Arc<dyn ReadAt>, container: Container) -> Self {
        Self {
            source,
            container,
            input: Vec::new(),
            used: 0,
            next: 0,
            stage: Stage::Header,
            decompressor: Box::default(),
            ring: vec![0; WINDOW].into(),
            produced: 0,
            member: 0,
            crc: None,
        }
    }

    /// Creates a decoder that continues at `snapshot`, after the bytes `window`.
    fn resume(
        source: Arc<dyn ReadAt>,
        container: Container,
        snapshot: &Snapshot,
        window: &[u8],
    ) -> Self {
        let mut inflater = Self::new(source, container);
        inflater.next = snapshot.input;
        inflater.produced = snapshot.output;
        if let Some((num_bits, bit_buf)) = snapshot.bits {
            inflater.stage = Stage::Body;
            *inflater.decompressor =
                DecompressorOxide::from_block_boundary_state(&BlockBoundaryState {
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

    /// Returns the position in the source of the next byte to decode.
    fn position(&self) -> u64 {
        self.next - (self.input.len() - self.used) as u64
    }

    /// Refills `input` if all its bytes are consumed. Returns false at the end of the source.
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

    fn truncated(&self) -> io::Error {
        let stream = match self.container {
            Container::Gzip => "gzip",
            Container::Zip { .. } => "deflate",
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
            return Err(self.truncated());
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

    /// Reads a gzip header. Returns false at the end of the source.
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
                return Err(invalid_data(format!(
                    "there is no gzip header at byte {start}: download it again"
                )));
            }
        }
        let flags = self.byte()?;
        // Time, compression level, system.
        for _ in 0..6 {
            self.byte()?;
        }
        // Optional fields in their order: extra data, name, comment, header checksum.
        if flags & 4 != 0 {
            let length = u16::from_le_bytes([self.byte()?, self.byte()?]);
            for _ in 0..length {
                self.byte()?;
            }
        }
        for flag in [8, 16] {
            while flags & flag != 0 && self.byte()? != 0 {
                if self.position() - start > MAX_HEADER {
                    return Err(invalid_data(format!(
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
        let (crc, length) = match self.container {
            Container::Gzip => (self.u32()?, self.u32()?),
            Container::Zip { crc } => (crc, size as u32),
        };
        if let Some(computed) = &mut self.crc {
            if computed.sum() != crc || size as u32 != length {
                return Err(invalid_data(format!(
                    "its checksum is wrong at byte {}: it is damaged, download it again",
                    self.position()
                )));
            }
            computed.reset();
        }
        Ok(())
    }

    /// Decodes at most `most` bytes, which must not be 0, into `ring`.
    ///
    /// Returns their range in `ring`, which may be empty, and the position in the stream.
    fn step(
        &mut self,
        most: usize,
        stop_at_blocks: bool,
    ) -> io::Result<(Range<usize>, StreamPosition)> {
        let out = (self.produced % WINDOW as u64) as usize;
        match self.stage {
            Stage::Header => {
                if self.container == Container::Gzip && !self.header()? {
                    self.stage = Stage::End;
                    return Ok((out..out, StreamPosition::End));
                }
                self.decompressor.init();
                self.member = self.produced;
                self.stage = Stage::Body;
                Ok((out..out, StreamPosition::Middle))
            }
            Stage::Body => {
                if !self.fill()? {
                    return Err(self.truncated());
                }
                let mut flags = TINFL_FLAG_HAS_MORE_INPUT;
                if stop_at_blocks {
                    flags |= TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
                }
                let input = &self.input[self.used..];
                let (status, read, written) = decompress_with_limit(
                    &mut self.decompressor,
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
                        StreamPosition::Middle
                    }
                    TINFLStatus::BlockBoundary => StreamPosition::Boundary,
                    TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => {
                        StreamPosition::Middle
                    }
                    _ => {
                        return Err(invalid_data(format!(
                            "its compressed data is damaged before byte {}: download it again",
                            self.position()
                        )));
                    }
                };
                Ok((bytes, at))
            }
            Stage::Trailer => {
                self.trailer()?;
                self.stage = match self.container {
                    Container::Gzip => Stage::Header,
                    Container::Zip { .. } => Stage::End,
                };
                Ok((out..out, StreamPosition::Boundary))
            }
            Stage::End => Ok((out..out, StreamPosition::End)),
        }
    }

    /// Returns the last bytes of output, at most [`WINDOW`].
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

fn invalid_data(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Snapshot of a decoder between two blocks, or before a gzip header.
struct Snapshot {
    /// Number of bytes of output before it.
    output: u64,
    /// Number of bytes of input before it.
    input: u64,
    /// Number of bits already read from the input, and these bits. `None` before a header.
    bits: Option<(u8, u8)>,
    /// The window before it, with zeros for bytes that are not referenced later; deflated.
    window: Box<[u8]>,
}

impl Snapshot {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.window.len()
    }
}

/// Returns a mask of the window's bytes at `snapshot` that later output references.
///
/// The next 32 KiB of output are decoded three times, with windows that contain the low byte of
/// each position, its high byte, and the inverted low byte. An output byte that differs between
/// the first and the last is a copy, and the first two give the position that it is copied from.
/// After 32 KiB the window is out of reach.
fn referenced_bytes(
    source: &Arc<dyn ReadAt>,
    container: Container,
    snapshot: &Snapshot,
) -> Vec<bool> {
    let low: Vec<u8> = (0..WINDOW).map(|i| i as u8).collect();
    let high: Vec<u8> = (0..WINDOW).map(|i| (i >> 8) as u8).collect();
    let inverted: Vec<u8> = low.iter().map(|byte| !byte).collect();
    let [low, high, inverted] = [low, high, inverted].map(|window| {
        let mut inflater = Inflater::resume(Arc::clone(source), container, snapshot, &window);
        let mut output = Vec::with_capacity(WINDOW);
        while output.len() < WINDOW {
            // The indexing pass reports the error when it reaches this position.
            let Ok((bytes, _)) = inflater.step(WINDOW - output.len(), false) else {
                break;
            };
            output.extend_from_slice(&inflater.ring[bytes]);
            if inflater.stage != Stage::Body {
                // The next member does not reference this one.
                break;
            }
        }
        output
    });
    let mut referenced = vec![false; WINDOW];
    for ((low, high), inverted) in low.iter().zip(&high).zip(&inverted) {
        if low != inverted {
            referenced[usize::from(*low) | usize::from(*high & 0x7f) << 8] = true;
        }
    }
    referenced
}

/// The indexing pass, which takes the snapshots. As a reader it yields the decoded content.
pub(super) struct Indexer {
    inflater: Inflater,
    snapshots: Vec<Snapshot>,
    spacing: Spacing,
    /// Memory of the snapshots in bytes.
    snapshot_bytes: usize,
    /// Range of the decoder's ring that has not been read yet.
    pending: Range<usize>,
}

impl Indexer {
    pub(super) fn new(source: Arc<dyn ReadAt>, container: Container, spacing: Spacing) -> Self {
        let mut inflater = Inflater::new(source, container);
        inflater.crc = Some(Crc::new());
        let start = Snapshot {
            output: 0,
            input: 0,
            bits: None,
            window: Box::default(),
        };
        Self {
            snapshot_bytes: start.bytes(),
            inflater,
            snapshots: vec![start],
            spacing,
            pending: 0..0,
        }
    }

    /// Decodes more if nothing is pending. Returns false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        while self.pending.is_empty() {
            let (bytes, at) = self.inflater.step(WINDOW, true)?;
            self.pending = bytes;
            match at {
                StreamPosition::End => return Ok(false),
                StreamPosition::Boundary => self.maybe_take_snapshot(),
                StreamPosition::Middle => {}
            }
        }
        Ok(true)
    }

    /// Takes a snapshot if the last one is far enough away.
    fn maybe_take_snapshot(&mut self) {
        let inflater = &self.inflater;
        let last = self.snapshots.last().map_or(0, |last| last.output);
        if inflater.produced - last < self.spacing.distance || inflater.stage == Stage::End {
            return;
        }
        let bits = match inflater.decompressor.block_boundary_state() {
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
            let referenced = referenced_bytes(&inflater.source, inflater.container, &snapshot);
            let mut window = inflater.window();
            let absent = WINDOW - window.len();
            for (byte, referenced) in window.iter_mut().zip(&referenced[absent..]) {
                *byte *= u8::from(*referenced);
            }
            snapshot.window = compress_to_vec(&window, 6).into();
        }
        self.snapshot_bytes += snapshot.bytes();
        self.snapshots.push(snapshot);
        while self.snapshot_bytes > self.spacing.memory && self.snapshots.len() > 1 {
            let mut keep = false;
            self.snapshots.retain(|_| {
                // This keeps the first snapshot, the start of the stream.
                keep = !keep;
                keep
            });
            self.snapshot_bytes = self.snapshots.iter().map(Snapshot::bytes).sum();
            self.spacing.distance *= 2;
        }
    }

    /// Skips `count` bytes.
    ///
    /// # Errors
    /// Errors of reading, or `UnexpectedEof` if there are fewer bytes.
    pub(super) fn skip(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            if !self.advance()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = count.min(self.pending.len() as u64);
            self.pending.start += step as usize;
            count -= step;
        }
        Ok(())
    }

    /// Decodes the rest of the stream, which verifies its checksums.
    pub(super) fn finish(mut self) -> io::Result<Inflated> {
        while self.advance()? {
            self.pending.start = self.pending.end;
        }
        self.snapshots.shrink_to_fit();
        Ok(Inflated {
            len: self.inflater.produced,
            source: self.inflater.source,
            container: self.inflater.container,
            snapshots: self.snapshots,
            idle_decoders: Mutex::default(),
        })
    }
}

impl Read for Indexer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || !self.advance()? {
            return Ok(0);
        }
        let count = buf.len().min(self.pending.len());
        buf[..count].copy_from_slice(&self.inflater.ring[self.pending.start..][..count]);
        self.pending.start += count;
        Ok(count)
    }
}

/// The decoded content of a compressed stream, for positional reads.
pub(super) struct Inflated {
    source: Arc<dyn ReadAt>,
    container: Container,
    len: u64,
    /// Sorted by output. The first is the start of the stream.
    snapshots: Vec<Snapshot>,
    /// Idle decoders, least recently used first. A read that continues an earlier one resumes its
    /// decoder.
    idle_decoders: Mutex<Vec<Inflater>>,
}

impl Inflated {
    /// Returns the decoder nearest to `offset` whose position is at or before it.
    fn decoder_before(&self, offset: u64) -> io::Result<Inflater> {
        let after = self.snapshots.partition_point(|s| s.output <= offset);
        let snapshot = &self.snapshots[after - 1];
        {
            let mut idle_decoders = self
                .idle_decoders
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let best = (0..idle_decoders.len())
                .filter(|&i| (snapshot.output..=offset).contains(&idle_decoders[i].produced))
                .max_by_key(|&i| idle_decoders[i].produced);
            if let Some(best) = best {
                return Ok(idle_decoders.remove(best));
            }
        }
        let window = match &*snapshot.window {
            [] => Vec::new(),
            window => decompress_to_vec_with_limit(window, WINDOW)
                .map_err(|_| invalid_data("a snapshot of it is damaged".into()))?,
        };
        let source = Arc::clone(&self.source);
        Ok(Inflater::resume(source, self.container, snapshot, &window))
    }

    /// Memory of the snapshots in bytes.
    #[cfg(test)]
    pub(super) fn snapshot_bytes(&self) -> usize {
        self.snapshots.iter().map(Snapshot::bytes).sum()
    }
}

impl ReadAt for Inflated {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(offset, buf.len(), self.len)?;
        let mut inflater = self.decoder_before(offset)?;
        let mut filled = 0;
        while filled < buf.len() {
            // Output before `offset` is decoded and discarded.
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
            if at == StreamPosition::End && filled < buf.len() {
                return Err(invalid_data("it has changed since it was indexed".into()));
            }
        }
        let mut idle_decoders = self
            .idle_decoders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if idle_decoders.len() == MAX_IDLE_DECODERS {
            idle_decoders.remove(0);
        }
        idle_decoders.push(inflater);
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

    use super::{super::read_at::tests::Memory, *};

    const CLOSE: Spacing = Spacing {
        distance: 4 << 10,
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
        Indexer::new(Arc::new(Memory(packed)), Container::Gzip, spacing).finish()
    }

    fn check_ranges(inflated: &Inflated, bytes: &[u8]) {
        assert_eq!(inflated.len(), bytes.len() as u64);
        for i in 0..60 {
            let start = i * 7919 * 13 % bytes.len();
            let count = (i * 997 % 40_000).min(bytes.len() - start);
            let mut buf = vec![0; count];
            inflated.read_at(start as u64, &mut buf).unwrap();
            assert!(buf == bytes[start..][..count], "{start}+{count}");
            // The next read must start at a snapshot, not at an idle decoder.
            inflated.idle_decoders.lock().unwrap().clear();
        }
    }

    #[test]
    fn reads_anywhere_from_snapshots_with_referenced_bytes_only() {
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
            distance: 1,
            memory: 60_000,
        };
        let inflated = indexed(gzip(&bytes), spacing).unwrap();
        assert!(
            inflated.snapshot_bytes() <= spacing.memory,
            "{}",
            inflated.snapshot_bytes()
        );
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
    fn the_indexing_pass_reads_and_skips() {
        let bytes = content(200_000);
        let mut indexer = Indexer::new(Arc::new(Memory(gzip(&bytes))), Container::Gzip, CLOSE);
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

    /// A source that counts the bytes read from it.
    struct Counted(Memory, AtomicU64);

    impl ReadAt for Counted {
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
            distance: 1 << 30,
            ..CLOSE
        };
        let indexer = Indexer::new(Arc::clone(&source) as _, Container::Gzip, wide);
        let inflated = indexer.finish().unwrap();
        source.1.store(0, Ordering::Relaxed);
        // Two readers in turn, as for two splits of a dataset.
        let half = bytes.len() / 2;
        let mut buf = [0; 1000];
        for i in 0..half / 1000 {
            for start in [i * 1000, half + i * 1000] {
                inflated.read_at(start as u64, &mut buf).unwrap();
                assert!(buf == bytes[start..start + 1000]);
            }
        }
        let read = source.1.load(Ordering::Relaxed);
        // The second reader decodes the first half once to get to its position.
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
