use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Read as _};
use std::sync::mpsc;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn tell() -> TellLoss {
    Box::new(|lost| format!("lost {lost}\n").into_bytes())
}

fn line(number: usize) -> Vec<u8> {
    format!("{number:05} {}\n", "x".repeat(993)).into_bytes()
}

/// Reads to the end on a thread of its own; the writer must be gone for that.
fn rest(mut reader: PipeReader) -> String {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = reader.read_to_string(&mut text).map(|_| sender.send(text));
    });
    receiver.recv_timeout(PATIENCE).unwrap()
}

/// Writes what a pipe and the queue hold, and more.
fn flood(writer: &LineWriter, origin: LineOrigin) -> usize {
    let lines = 4 * MAX_WAITING / 1000;
    (0..lines).for_each(|number| writer.write(line(number), 1, origin));
    lines
}

#[test]
fn a_pipe_that_nobody_reads_stops_no_writer_and_what_is_lost_is_told_once() {
    let (reader, pipe) = std::io::pipe().unwrap();
    let writer = LineWriter::start(pipe, tell()).unwrap();
    let lines = flood(&writer, LineOrigin::Own);
    let lost = writer.lost();
    assert!(lost > 0 && lost < lines as u64, "{lost} of {lines}");
    assert!(!writer.finish(Duration::from_millis(50)), "it cannot be written");
    assert_eq!(writer.0.state().lost, lost, "waiting loses nothing");
    assert!(writer.0.state().bytes <= MAX_WAITING);
    drop(writer);
    let text = rest(reader);
    let (told, kept): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("lost "));
    assert_eq!(told, [format!("lost {lost}")]);
    assert_eq!(kept.len(), lines - lost as usize);
    for (number, kept) in kept.iter().enumerate() {
        assert!(kept.starts_with(&format!("{number:05} ")), "the first are kept, in order: {kept:.20}");
    }
}

#[test]
fn a_flood_of_relayed_lines_leaves_room_for_our_own() {
    let (_reader, pipe) = std::io::pipe().unwrap();
    let writer = LineWriter::start(pipe, tell()).unwrap();
    flood(&writer, LineOrigin::Relayed);
    let lost = writer.lost();
    assert!(lost > 0);
    (0..100).for_each(|number| writer.write(line(number), 1, LineOrigin::Own));
    assert_eq!(writer.lost(), lost);
}

#[test]
fn a_reader_that_comes_back_reads_what_comes_then() {
    let (reader, pipe) = std::io::pipe().unwrap();
    let writer = LineWriter::start(pipe, tell()).unwrap();
    flood(&writer, LineOrigin::Own);
    let reading = std::thread::spawn(move || rest(reader));
    assert!(writer.finish(PATIENCE));
    let lost = writer.lost();
    writer.write(b"after\n".to_vec(), 1, LineOrigin::Own);
    assert!(writer.finish(PATIENCE) && writer.lost() == lost);
    drop(writer);
    let text = reading.join().unwrap();
    assert!(text.ends_with("after\n"), "{}", &text[text.len() - 100..]);
    assert_eq!(text.matches("lost ").count(), 1);
}

/// The device is full for ever, as a disk may be for a while.
#[test]
fn a_full_disk_loses_lines_and_nothing_else() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let writer = LineWriter::start(full, tell()).unwrap();
    (0..10).for_each(|number| writer.write(line(number), 3, LineOrigin::Own));
    assert!(writer.finish(PATIENCE));
    assert_eq!(writer.lost(), 30);
}

#[test]
fn a_reader_that_is_gone_loses_lines_and_nothing_else() {
    let (reader, pipe) = std::io::pipe().unwrap();
    drop(reader);
    let writer = LineWriter::start(pipe, tell()).unwrap();
    (0..10).for_each(|number| writer.write(line(number), 1, LineOrigin::Own));
    assert!(writer.finish(PATIENCE));
    assert_eq!(writer.lost(), 10);
}

/// Takes so many bytes, then nothing, as a disk that is full, until there is room.
struct Disk {
    room: mpsc::Receiver<usize>,
    left: usize,
    file: File,
}

impl Write for Disk {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.left += self.room.try_iter().sum::<usize>();
        match text.len().min(self.left) {
            0 => Err(io::ErrorKind::StorageFull.into()),
            len => {
                self.left -= len;
                self.file.write(&text[..len])
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_line_that_was_cut_off_by_a_full_disk_is_ended_before_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (room, receiver) = mpsc::channel();
    let disk = Disk { room: receiver, left: 10, file: File::create(&path).unwrap() };
    let writer = LineWriter::start(disk, tell()).unwrap();
    let write = |text: &str| {
        writer.write(text.into(), 1, LineOrigin::Own);
        assert!(writer.finish(PATIENCE));
    };
    ["first\n", "second\n", "third\n"].into_iter().for_each(write);
    room.send(1000).unwrap();
    write("fourth\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "first\nseco\nfourth\nlost 2\n");
    assert_eq!(writer.lost(), 2);
}

/// Somebody made the pipe one that does not wait, and reads it late.
#[test]
fn a_pipe_that_refuses_to_wait_loses_nothing_that_fits_the_queue() {
    let (reader, pipe) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&pipe, true).unwrap();
    let writer = LineWriter::start(pipe, tell()).unwrap();
    (0..200).for_each(|number| writer.write(line(number), 1, LineOrigin::Own));
    assert!(!writer.finish(Duration::from_millis(50)));
    let reading = std::thread::spawn(move || rest(reader));
    assert!(writer.finish(PATIENCE));
    assert_eq!(writer.lost(), 0);
    drop(writer);
    assert_eq!(reading.join().unwrap().lines().count(), 200);
}
