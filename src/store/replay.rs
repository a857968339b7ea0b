//! Reading the journal: everything after a position, as far as it is whole.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::platform;

use super::disk::{Disk, free_path};
use super::journal::{FRAME, HEADER, MAGIC, Position, segment_path, segments};
use super::record::{Entry, VERSION};

/// How far the journal could be read.
#[derive(Debug, Clone, Default)]
pub(super) struct Reach {
    /// Where the next record would have begun.
    pub end: Position,
    pub records: u64,
    /// Where the last record begins.
    pub last: Position,
    /// The journal was asked for from its start, but its first segments are gone.
    pub headless: bool,
    /// The place that it was asked for from is not there, nor is anything that continues from it: what came after is gone.
    pub missing: bool,
    /// Why there may have been more. A torn tail is no reason.
    pub damage: Option<String>,
}

impl Reach {
    /// Whether there was or may have been more than could be read.
    pub fn is_broken(&self) -> bool {
        self.damage.is_some() || self.missing || self.headless
    }
}

/// A file that is there and cannot be read now, though it may well be whole.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub path: PathBuf,
    pub error: io::Error,
}

/// Reads every record from `from` on, in order, up to the end or the first damage. Changes nothing. What the disk cannot give back is
/// damage; what this process may not read, or not just now, is an error: nothing is to be begun without it.
pub(super) fn read(
    directory: &Path,
    from: Position,
    visit: &mut dyn FnMut(Entry),
) -> Result<Reach, Unreadable> {
    let mut reach = Reach {
        end: from,
        missing: from != Position::default(),
        ..Reach::default()
    };
    let mut started = from != Position::default();
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |error| Unreadable { path, error }
    };
    for segment in segments(directory).map_err(unreadable(directory))? {
        if segment < from.segment {
            continue;
        }
        let path = segment_path(directory, segment);
        match read_segment(&path, segment, from, &mut started, &mut reach, visit) {
            Ok(()) => {}
            Err(error) if platform::is_passing(&error) => return Err(unreadable(&path)(error)),
            Err(error) => {
                reach.damage = Some(format!("{}: {error}", path.display()));
            }
        }
    }
    Ok(reach)
}

/// Reads on in this segment, if it continues the journal. One that does not is damage, but not the end: a run that could not set it
/// aside has gone on in a later one from where it could read to.
fn read_segment(
    path: &Path,
    segment: u64,
    from: Position,
    started: &mut bool,
    reach: &mut Reach,
    visit: &mut dyn FnMut(Entry),
) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let length = file.get_ref().metadata()?.len();
    let previous = match read_header(&mut file)? {
        Some(previous) => previous,
        // Nothing was in it yet when the power went.
        None if length <= HEADER => return Ok(()),
        None => return Err(io::Error::other("its header is damaged")),
    };
    if segment == from.segment {
        if length < from.offset {
            return Ok(());
        }
        file.seek(SeekFrom::Start(from.offset))?;
        reach.end = from;
    } else {
        if !*started {
            reach.headless = previous != Position::default();
        } else if previous != reach.end && !withdrawn(previous, reach.end) {
            let end = reach.end;
            // There is something, only not what was looked for.
            reach.missing = false;
            reach.damage.get_or_insert_with(|| {
                format!(
                    "{}: it continues from {previous}, but the journal ends at {end}",
                    path.display()
                )
            });
            return Ok(());
        }
        reach.end = Position {
            segment,
            offset: HEADER,
        };
    }
    *started = true;
    reach.missing = false;
    // Whatever was unreadable at the end of the one before was known when this one began.
    reach.damage = None;
    let mut left = length - reach.end.offset;
    loop {
        match read_frame(&mut file, left)? {
            Frame::Record(entry, size) => {
                visit(*entry);
                reach.last = reach.end;
                left -= size;
                reach.end.offset += size;
                reach.records += 1;
            }
            Frame::End => return Ok(()),
            Frame::Bad(why) => {
                let at = reach.end.offset;
                reach.damage = Some(format!("{} at byte {at}: {why}", path.display()));
                return Ok(());
            }
        }
    }
}

/// Whether the journal goes on from before what was read last: of a batch that failed, and then could not be cut off, whole records
/// were left. They are told as missing by what follows, which is no worse than having them.
fn withdrawn(previous: Position, end: Position) -> bool {
    previous.segment == end.segment && previous.offset < end.offset
}

/// The position that a segment continues from.
fn read_header(file: &mut impl Read) -> io::Result<Option<Position>> {
    let mut header = [0; HEADER as usize];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [magic, segment, offset] = [&header[..8], &header[8..16], &header[16..24]];
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
    let good = magic == MAGIC && header[24..] == crc32fast::hash(&header[..24]).to_le_bytes();
    Ok(good.then(|| Position {
        segment: number(segment),
        offset: number(offset),
    }))
}

enum Frame {
    /// An entry, and the bytes that it took.
    Record(Box<Entry>, u64),
    /// The file ends here, or in the middle of a frame.
    End,
    Bad(String),
}

/// Reads one frame of a file in which `left` bytes are left.
fn read_frame(file: &mut impl Read, left: u64) -> io::Result<Frame> {
    let mut header = [0; FRAME as usize];
    if left < FRAME {
        return Ok(Frame::End);
    }
    file.read_exact(&mut header)?;
    let [a, b, c, d, crc @ ..] = header;
    let length = u32::from_le_bytes([a, b, c, d]);
    if u64::from(length) > left - FRAME {
        return Ok(Frame::End);
    }
    if length == 0 {
        // Some filesystems fill what was not written in time with zeros.
        let mut rest = Vec::new();
        let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        file.take(1 << 20).read_to_end(&mut rest)?;
        return Ok(if zeros(&crc) && zeros(&rest) {
            Frame::End
        } else {
            Frame::Bad("there is an empty record".into())
        });
    }
    // No longer than what is really there.
    let mut payload = vec![0; length as usize];
    file.read_exact(&mut payload)?;
    if crc32fast::hash(&payload) != u32::from_le_bytes(crc) {
        return Ok(Frame::Bad("the checksum is wrong".into()));
    }
    match Entry::decode(&Bytes::from(payload)) {
        Ok(entry) => Ok(Frame::Record(Box::new(entry), FRAME + u64::from(length))),
        Err(error) => Ok(Frame::Bad(error.to_string())),
    }
}

/// Makes `reach.end` the end of the journal: cuts a torn tail, keeps aside what is damaged or comes after damage.
pub(super) fn tidy(disk: &dyn Disk, directory: &Path, reach: &Reach) -> io::Result<Vec<String>> {
    let mut notes = Vec::new();
    for segment in segments(directory)? {
        let path = segment_path(directory, segment);
        if segment > reach.end.segment {
            // Without a record it is no loss.
            if std::fs::metadata(&path)?.len() <= HEADER {
                disk.remove(&path)?;
                continue;
            }
            let aside = free_path(&path, "damaged");
            disk.rename(&path, &aside)?;
            notes.push(format!("journal: set aside as {}", aside.display()));
        } else if segment == reach.end.segment {
            let length = std::fs::metadata(&path)?.len();
            if length <= reach.end.offset {
                continue;
            }
            let cut = length - reach.end.offset;
            if holds_records(&path, reach.end.offset)? {
                let aside = free_path(&path, "damaged");
                std::fs::copy(&path, &aside)?;
                notes.push(format!("journal: a copy is kept as {}", aside.display()));
            }
            disk.truncate(&path, reach.end.offset)?;
            notes.push(format!(
                "journal: cut {cut} bytes of an unfinished record off {}",
                path.display()
            ));
        }
    }
    disk.sync_dir(directory)?;
    Ok(notes)
}

/// Whether there are whole records somewhere after `offset`, as damage in the middle of a file leaves them.
fn holds_records(path: &Path, offset: u64) -> io::Result<bool> {
    /// How an entry begins: an array of three, the version, a 64-bit time.
    const SIGN: [u8; 3] = [0x93, VERSION, 0xCF];
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let is_record = |at: usize| {
        let frame = tail.get(at..)?;
        let (length, frame) = frame.split_first_chunk()?;
        let (crc, frame) = frame.split_first_chunk()?;
        let payload = frame.get(..u32::from_le_bytes(*length) as usize)?;
        Some(payload.starts_with(&SIGN) && crc32fast::hash(payload) == u32::from_le_bytes(*crc))
    };
    Ok((0..tail.len())
        .any(|at| tail.get(at + FRAME as usize) == Some(&SIGN[0]) && is_record(at) == Some(true)))
}
