use std::fs;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::backend::file::Image;

const CLUSTER: u64 = 65536;
const MIB: u64 = 1 << 20;

/// Bytes that differ from place to place.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at / 512 * 7 + at).to_le_bytes()[0] ^ seed)
        .collect()
}

fn raw(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn clone(base: &Path, format: Format, overlay: &Path) -> PathBuf {
    let clone = LinkedClone {
        base,
        base_format: format,
        overlay,
        size_bytes: None,
    };
    clone.make().unwrap();
    overlay.to_owned()
}

fn read(image: &ThinImage, range: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(range.end - range.start).unwrap()];
    image.read(range.start, &mut bytes).unwrap();
    bytes
}

/// `qemu-img`, where it is installed.
fn qemu_img(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Option<std::process::Output> {
    let mut command = Command::new("qemu-img");
    command.args(arguments.iter().map(|argument| argument.as_ref()));
    match command.output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("qemu-img: {error}"),
    }
}

/// No corruption, and no leak.
fn assert_sound(path: &Path) {
    if let Some(output) = qemu_img(&[&"check", &path]) {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn a_clone_reads_as_its_base_and_keeps_its_own_writes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = pattern(usize::try_from(4 * MIB).unwrap(), 1);
    let base = raw(dir.path(), "base.raw", &bytes);
    let (one, two) = (dir.path().join("one.qcow2"), dir.path().join("two.qcow2"));
    clone(&base, Format::Raw, &one);
    clone(&base, Format::Raw, &two);
    let (a, b) = (
        ThinImage::open(&one, false).unwrap(),
        ThinImage::open(&two, false).unwrap(),
    );
    assert_eq!(a.geometry().capacity_bytes, 4 * MIB);
    assert_eq!(read(&a, 0..4 * MIB), bytes);
    a.write(CLUSTER - 512, &[0xaa; 1024]).unwrap();
    b.write(CLUSTER, &[0xbb; 512]).unwrap();
    let mut expected = bytes.clone();
    expected[65024..66048].fill(0xaa);
    assert_eq!(read(&a, 0..4 * MIB), expected);
    let mut expected = bytes.clone();
    expected[65536..66048].fill(0xbb);
    assert_eq!(read(&b, 0..4 * MIB), expected);
    drop((a, b));
    assert_eq!(fs::read(&base).unwrap(), bytes, "the base was written");
    assert_sound(&one);
    assert_sound(&two);
}

#[test]
fn a_chain_of_overlays_reads_through() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = pattern(usize::try_from(2 * MIB).unwrap(), 9);
    let base = raw(dir.path(), "base.raw", &expected);
    let middle = clone(&base, Format::Raw, &dir.path().join("middle.qcow2"));
    let image = ThinImage::open(&middle, false).unwrap();
    image.write(MIB, &[1; 4096]).unwrap();
    expected[1 << 20..(1 << 20) + 4096].fill(1);
    drop(image);
    let top = clone(&middle, Format::Qcow2, &dir.path().join("top.qcow2"));
    let image = ThinImage::open(&top, false).unwrap();
    image.write(0, &[2; 512]).unwrap();
    image.zero(MIB + 512..MIB + 1024, false).unwrap();
    expected[..512].fill(2);
    expected[(1 << 20) + 512..(1 << 20) + 1024].fill(0);
    assert_eq!(read(&image, 0..2 * MIB), expected);
    drop(image);
    assert_sound(&top);
    if let Some(output) = qemu_img(&[
        &"convert",
        &"-O",
        &"raw",
        &top,
        &dir.path().join("flat.raw"),
    ]) {
        assert!(output.status.success(), "{output:?}");
        assert!(fs::read(dir.path().join("flat.raw")).unwrap() == expected);
    }
}

#[test]
fn overlays_of_qemu_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = pattern(usize::try_from(MIB).unwrap(), 3);
    let base = raw(dir.path(), "base.raw", &bytes);
    let compressed = dir.path().join("compressed.qcow2");
    let overlay = dir.path().join("overlay.qcow2");
    let Some(made) = qemu_img(&[&"convert", &"-c", &"-O", &"qcow2", &base, &compressed]) else {
        return;
    };
    assert!(made.status.success());
    let made = qemu_img(&[
        &"create",
        &"-q",
        &"-f",
        &"qcow2",
        &"-F",
        &"qcow2",
        &"-b",
        &"compressed.qcow2",
        &overlay,
    ]);
    assert!(made.unwrap().status.success());
    let image = ThinImage::open(&overlay, false).unwrap();
    assert_eq!(read(&image, 0..MIB), bytes);
    image.write(512, &[7; 512]).unwrap();
    let mut expected = bytes;
    expected[512..1024].fill(7);
    assert_eq!(read(&image, 0..MIB), expected);
    drop(image);
    assert_sound(&overlay);
    // Compressed clusters in the image itself are read, and replaced.
    let image = ThinImage::open(&compressed, false).unwrap();
    image.write(512, &[7; 512]).unwrap();
    assert_eq!(read(&image, 0..MIB), expected);
    drop(image);
    assert_sound(&compressed);
    let compared = qemu_img(&[&"compare", &compressed, &overlay]).unwrap();
    assert!(compared.status.success(), "{compared:?}");
}

#[test]
fn a_base_is_written_by_nobody_and_an_overlay_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(dir.path(), "base.raw", &vec![5; 1 << 20]);
    let overlay = clone(&base, Format::Raw, &dir.path().join("o.qcow2"));
    let image = ThinImage::open(&overlay, false).unwrap();
    assert!(matches!(
        Image::open(&base, false),
        Err(ImageError::Locked { .. })
    ));
    Image::open(&base, true).unwrap();
    assert!(matches!(
        ThinImage::open(&overlay, false),
        Err(ThinError::Image(ImageError::Locked { .. }))
    ));
    drop(image);
    let served = Image::open(&base, false).unwrap();
    assert!(matches!(
        ThinImage::open(&overlay, false),
        Err(ThinError::BaseInUse { .. })
    ));
    let clone = LinkedClone {
        base: &base,
        base_format: Format::Raw,
        overlay: &dir.path().join("p.qcow2"),
        size_bytes: None,
    };
    assert!(matches!(clone.make(), Err(ThinError::BaseInUse { .. })));
    assert!(!clone.overlay.exists());
    drop(served);
    clone.make().unwrap();
}

#[test]
fn a_base_is_opened_once_for_all_its_clones() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(dir.path(), "base.raw", &vec![5; 1 << 20]);
    let images: Vec<_> = (0..20)
        .map(|n| {
            let overlay = clone(&base, Format::Raw, &dir.path().join(format!("{n}.qcow2")));
            ThinImage::open(&overlay, false).unwrap()
        })
        .collect();
    let name = fs::canonicalize(&base).unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == name));
    assert_eq!(open.count(), 1);
    drop(images);
    Image::open(&base, false).expect("free again");
}

#[test]
fn what_the_base_is_must_be_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(dir.path(), "base.raw", &vec![5; 1 << 20]);
    let overlay = clone(&base, Format::Raw, &dir.path().join("o.qcow2"));
    let mut bytes = fs::read(&overlay).unwrap();
    let at = bytes
        .windows(4)
        .position(|word| word == 0xe279_2aca_u32.to_be_bytes())
        .unwrap();
    bytes[at..at + 4].copy_from_slice(&[0x11; 4]);
    fs::write(&overlay, &bytes).unwrap();
    let error = ThinImage::open(&overlay, false).unwrap_err();
    assert!(
        matches!(error, ThinError::NoBackingFormat { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("qemu-img rebase -u -F raw"),
        "{error}"
    );
}

#[test]
fn circles_pipes_and_protocols_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(dir.path(), "base.raw", &vec![5; 1 << 20]);
    let overlay = clone(&base, Format::Raw, &dir.path().join("overlay.qcow2"));
    let name = fs::canonicalize(&base).unwrap().display().to_string();
    let with = |replacement: String, kind: &str| {
        let mut bytes = fs::read(&overlay).unwrap();
        let at = bytes
            .windows(name.len())
            .position(|there| there == name.as_bytes())
            .unwrap();
        bytes[at..at + name.len()].copy_from_slice(replacement.as_bytes());
        if kind == "qcow2" {
            // "raw" and "qcow2" are both padded to eight bytes.
            let at = bytes
                .windows(4)
                .position(|w| w == 0xe279_2aca_u32.to_be_bytes())
                .unwrap();
            bytes[at + 4..at + 8].copy_from_slice(&5u32.to_be_bytes());
            bytes[at + 8..at + 13].copy_from_slice(b"qcow2");
        }
        let path = dir.path().join("try.qcow2");
        fs::write(&path, &bytes).unwrap();
        ThinImage::open(&path, true).unwrap_err()
    };
    let padded = |text: &str| format!("{text}{}", "/".repeat(name.len() - text.len()));
    assert!(matches!(
        with(padded("nbd:somewhere"), "raw"),
        ThinError::Unsupported { .. }
    ));
    assert!(matches!(
        with(padded("/dev/null"), "raw"),
        ThinError::Image(_)
    ));
    let circle = format!(
        ".{}try.qcow2",
        "/".repeat(name.len() - "try.qcow2".len() - 1)
    );
    assert!(matches!(with(circle, "qcow2"), ThinError::TooDeep { .. }));
}

#[test]
fn tables_that_do_not_agree_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    create(&path, Format::Qcow2, 4 * MIB).unwrap();
    let image = ThinImage::open(&path, false).unwrap();
    image.write(0, &[1; 512]).unwrap();
    image.write(MIB, &[2; 512]).unwrap();
    let header = image.header.clone();
    drop(image);
    let sound = fs::read(&path).unwrap();
    let word = |bytes: &[u8], at: u64| header::be64(bytes, usize::try_from(at).unwrap());
    let l1 = image_l1(&sound);
    let l2 = word(&sound, l1) & 0x00ff_ffff_ffff_fe00;
    let counts = word(&sound, header.reftable_offset);
    let data = word(&sound, l2) & 0x00ff_ffff_ffff_fe00;
    let refused = |at: u64, value: &[u8]| {
        let mut bytes = sound.clone();
        let at = usize::try_from(at).unwrap();
        bytes[at..at + value.len()].copy_from_slice(value);
        fs::write(&path, &bytes).unwrap();
        let error = ThinImage::open(&path, false).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("qemu-img"), "{text}");
        error
    };
    // Used, not counted.
    refused(counts + data / CLUSTER * 2, &[0, 0]);
    // Two places lead to one cluster.
    refused(l2 + 8, &(data | 1 << 63).to_be_bytes());
    // Past the end, not at a cluster, in the header.
    for offset in [1 << 40, data + 512, 0x200] {
        refused(l2, &(offset | 1u64 << 63).to_be_bytes());
        refused(l1, &(offset | 1u64 << 63).to_be_bytes());
    }
    refused(l1, &(1u64 << 60).to_be_bytes());
    // A table of feature names that ends within an entry.
    let names = sound
        .windows(4)
        .position(|word| word == 0x6803_f857_u32.to_be_bytes())
        .unwrap();
    refused(names as u64 + 4, &1u32.to_be_bytes());
    // Headers.
    for (at, value) in [
        (20u64, 40u32),
        (32, 1),
        (36, 0),
        (56, 0),
        (56, u32::MAX),
        (76, 1),
        (76, 64),
        (96, 9),
        (100, 1 << 30),
    ] {
        refused(at, &value.to_be_bytes());
    }
    for (at, value) in [
        (24u64, 0u64),
        (24, 1 << 62),
        (24, 1000),
        (40, 512),
        (48, 1 << 50),
    ] {
        refused(at, &value.to_be_bytes());
    }
    fs::write(&path, b"QFI").unwrap();
    assert!(matches!(
        ThinImage::open(&path, false),
        Err(ThinError::NotQcow2 { .. })
    ));
    fs::write(&path, &sound).unwrap();
    ThinImage::open(&path, false).unwrap();
}

fn image_l1(bytes: &[u8]) -> u64 {
    header::be64(bytes, 40)
}

/// Headers of any content are refused or opened, and what is opened can be read and written.
#[test]
fn no_header_brings_the_process_down() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    create(&path, Format::Qcow2, 4 * MIB).unwrap();
    let image = ThinImage::open(&path, false).unwrap();
    image.write(MIB, &[2; 512]).unwrap();
    drop(image);
    let sound = fs::read(&path).unwrap();
    let strategy = (
        proptest::collection::vec((0usize..5 * 65536, any::<u8>()), 1..4),
        any::<bool>(),
    );
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(400)
    };
    proptest!(config, |((changes, near) in strategy)| {
        let mut bytes = sound.clone();
        for (at, value) in changes {
            let at = if near { at % 600 } else { at % sound.len() };
            bytes[at] = value;
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(image) = ThinImage::open(&path, false) {
            let end = image.geometry().capacity_bytes.min(4 * MIB);
            let _ = image.read(0, &mut vec![0; usize::try_from(end).unwrap()]);
            let _ = image.write(0, &[1; 512]);
            let _ = image.zero(0..end, true);
        }
    });
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Flush,
    Reopen,
    Grow,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sectors = 3 * CLUSTER / 512;
    // Around clusters, and around the second table's reach when clusters are small.
    let place = (0..sectors * 4, 1..sectors);
    let step = prop_oneof![
        6 => (place.clone(), any::<u8>()).prop_map(|((at, len), v)| Step::Write(at, len, v)),
        3 => (place, any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero(at, len, unmap)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Grow),
    ];
    proptest::collection::vec(step, 1..30)
}

/// Whatever is done to an overlay, it reads as the bytes it should have, its base stays as it was,
/// and QEMU finds nothing wrong with it.
#[test]
fn an_overlay_behaves_like_plain_bytes() {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(60)
    };
    proptest!(config, |(steps in steps(), small in any::<bool>())| {
        let dir = tempfile::tempdir().unwrap();
        let base_bytes = pattern(usize::try_from(10 * CLUSTER + 512).unwrap(), 0x33);
        let base = raw(dir.path(), "base.raw", &base_bytes);
        let overlay = dir.path().join("overlay.qcow2");
        if small {
            // Clusters so small that second tables and blocks of counts fill up.
            let made = qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-o", &"cluster_size=4096",
                &"-F", &"raw", &"-b", &base, &overlay]);
            prop_assume!(made.is_some());
            assert!(made.unwrap().status.success());
        } else {
            clone(&base, Format::Raw, &overlay);
        }
        let mut model = base_bytes.clone();
        let mut image = ThinImage::open(&overlay, false).unwrap();
        for step in steps {
            let len = model.len() as u64;
            let clip = |at: u64, sectors: u64| {
                let start = at * 512 % len;
                (start, (sectors * 512).min(len - start))
            };
            match step {
                Step::Write(at, sectors, value) => {
                    let (start, bytes) = clip(at, sectors);
                    let bytes = vec![value; usize::try_from(bytes).unwrap()];
                    image.write(start, &bytes).unwrap();
                    let start = usize::try_from(start).unwrap();
                    model[start..start + bytes.len()].copy_from_slice(&bytes);
                }
                Step::Zero(at, sectors, unmap) => {
                    let (start, bytes) = clip(at, sectors);
                    image.zero(start..start + bytes, unmap).unwrap();
                    let start = usize::try_from(start).unwrap();
                    model[start..start + usize::try_from(bytes).unwrap()].fill(0);
                }
                Step::Flush => image.flush().unwrap(),
                Step::Reopen => {
                    drop(image);
                    image = ThinImage::open(&overlay, false).unwrap();
                }
                Step::Grow => {
                    let grown = len + 3 * CLUSTER + 1024;
                    image.grow(grown).unwrap();
                    model.resize(usize::try_from(grown).unwrap(), 0);
                }
            }
            assert!(read(&image, 0..model.len() as u64) == model);
        }
        // What is said to be a hole reads as zeroes.
        let mut at = 0;
        while at < model.len() as u64 {
            let data = image.next_data(at).unwrap();
            let start = data.as_ref().map_or(model.len() as u64, |data| data.start);
            let hole = usize::try_from(at).unwrap()..usize::try_from(start).unwrap();
            assert!(model[hole].iter().all(|&byte| byte == 0));
            at = data.map_or(model.len() as u64, |data| data.end);
        }
        drop(image);
        assert_sound(&overlay);
        assert!(fs::read(&base).unwrap() == base_bytes, "the base was written");
    });
}

/// Threads write ranges that overlap; each sector holds what one of them wrote.
#[test]
fn writers_may_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let base = raw(dir.path(), "base.raw", &vec![0; 4 << 20]);
    let overlay = clone(&base, Format::Raw, &dir.path().join("o.qcow2"));
    let image = ThinImage::open(&overlay, false).unwrap();
    std::thread::scope(|scope| {
        for thread in 1..=4u8 {
            let image = &image;
            scope.spawn(move || {
                let mut at = u64::from(thread) * 7919;
                for round in 0..200u64 {
                    at = (at * 6_364_136_223 + round) % (4 * MIB / 512 - 256);
                    match round % 10 {
                        0 => image
                            .zero(at * 512..(at + 200) * 512, round % 20 == 0)
                            .unwrap(),
                        1 => image.flush().unwrap(),
                        2 => drop(read(image, at * 512..(at + 256) * 512)),
                        _ => image.write(at * 512, &vec![thread; 150 * 512]).unwrap(),
                    }
                }
            });
        }
    });
    for sector in read(&image, 0..4 * MIB).chunks(512) {
        assert!(sector.iter().all(|&byte| byte == sector[0]) && sector[0] <= 4);
    }
    drop(image);
    assert_sound(&overlay);
}

#[test]
fn discarded_clusters_leave_the_file() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    create(&path, Format::Qcow2, 64 * MIB).unwrap();
    let image = ThinImage::open(&path, false).unwrap();
    let blocks = || fs::metadata(&path).unwrap().blocks() * 512;
    for n in 0..16 {
        image.write(n * MIB, &vec![1; 1 << 20]).unwrap();
    }
    image.flush().unwrap();
    let before = blocks();
    image.zero(0..16 * MIB, true).unwrap();
    image.flush().unwrap();
    assert!(
        before >= 16 * MIB && blocks() <= 2 * MIB,
        "{before} to {}",
        blocks()
    );
    assert!(read(&image, 0..16 * MIB).iter().all(|&byte| byte == 0));
    drop(image);
    assert_sound(&path);
}

/// The image as a process finds it that comes after one that was killed: another driver on what
/// is in the file.
fn successor(file: &File, path: &Path) -> Access {
    let bytes = size_of(file).unwrap();
    let header = Header::read(file, path, bytes).unwrap();
    check::whole(file, path, &header, bytes).unwrap_or_else(|error| panic!("{error}"));
    let below = header.backing.as_ref();
    let below = below
        .map(|below| base::of(path, below))
        .transpose()
        .unwrap();
    let file = ThinFile::new(Arc::new(file.try_clone().unwrap()), None);
    base::driver(file, false, below).unwrap()
}

/// Killed after any write that reaches the file, an image holds together; killed after an answer,
/// it holds what was answered.
#[test]
fn killed_at_any_write_an_image_holds_together() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = pattern(4 << 20, 0x44);
    let base = raw(dir.path(), "base.raw", &model);
    for small in [false, true] {
        let overlay = dir.path().join(format!("{small}.qcow2"));
        if small {
            let made = qemu_img(&[
                &"create",
                &"-q",
                &"-f",
                &"qcow2",
                &"-o",
                &"cluster_size=512",
                &"-F",
                &"raw",
                &"-b",
                &base,
                &overlay,
            ]);
            if made.is_none() {
                continue;
            }
        } else {
            clone(&base, Format::Raw, &overlay);
        }
        model = pattern(4 << 20, 0x44);
        let image = ThinImage::open(&overlay, false).unwrap();
        let watched = overlay.clone();
        let look = move |file: &File| drop(successor(file, &watched));
        *image.pointers.watcher.lock().unwrap() = Some(storage::Watcher(Box::new(look)));
        let mut at = 12345u64;
        for round in 0..60u64 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let sectors = model.len() as u64 / 512;
            let start = (at >> 33) % sectors;
            let len = ((at >> 20) % 300 + 1).min(sectors - start);
            let range = usize::try_from(start * 512).unwrap()
                ..usize::try_from((start + len) * 512).unwrap();
            match round % 6 {
                4 => {
                    image
                        .zero(start * 512..(start + len) * 512, round % 12 == 4)
                        .unwrap();
                    model[range].fill(0);
                }
                5 if round % 18 == 5 => {
                    let grown = model.len() as u64 + 700 * 512;
                    image.grow(grown).unwrap();
                    model.resize(usize::try_from(grown).unwrap(), 0);
                }
                _ => {
                    let bytes = vec![u8::try_from(round + 1).unwrap(); range.len()];
                    image.write(start * 512, &bytes).unwrap();
                    model[range].copy_from_slice(&bytes);
                }
            }
            let after = successor(&image.file, &overlay);
            assert_eq!(after.size(), model.len() as u64);
            let mut found = vec![0; model.len()];
            after.read(&mut found[..], 0).unwrap();
            assert!(
                found == model,
                "round {round}: what was answered is not in the file"
            );
        }
        *image.pointers.watcher.lock().unwrap() = None;
        drop(image);
        assert_sound(&overlay);
    }
}
