"""Our zip against Python's, in both directions, and archives that other readers accept."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    TargetError,
    UnsupportedError,
)
from converter.files import File, Publication
from converter.formats import _zip
from converter.formats._zip import ZipLayout, ZipWriter, members, read

CONTENTS = {"a/x": b"hello" * 100, "a/empty": b"", "a/ünï": bytes(range(256)), "a/y": b"!"}


@pytest.fixture
def opened(tmp_path):
    """Bytes as an open `File`."""
    files = []

    def open_bytes(data):
        path = tmp_path / f"{len(files)}.zip"
        path.write_bytes(data)
        files.append(File(path))
        return files[-1]

    yield open_bytes
    for file in files:
        file.close()


def by_zipfile(contents=CONTENTS, **options):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return stream.getvalue()


def by_us(path, contents=CONTENTS, **options):
    layout = ZipLayout({name: len(data) for name, data in contents.items()}, **options)
    publication = Publication([path], overwrite=True)
    writer = ZipWriter(publication.files[0], layout)
    for name, data in reversed(contents.items()):
        writer.write(name, [data[:7], np.frombuffer(data[7:], np.uint8)])
    writer.finish()
    publication.commit()
    return path.read_bytes()


def patched(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def read_all(file, **where):
    return {m.name: read(file, m, 1 << 20) for m in members(file, **where).values()}


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [0xFFFFFFFF, 1, 100])
def test_python_and_we_read_what_we_write(tmp_path, opened, limit):
    data = by_us(tmp_path / "ours.zip", limit=limit)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {i.filename: archive.read(i) for i in archive.infolist()} == CONTENTS
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    file = opened(data)
    assert read_all(file) == CONTENTS
    assert all(member.offset % 64 == 0 for member in members(file).values())
    assert by_us(tmp_path / "again.zip", limit=limit) == data


def test_as_many_members_as_need_zip64(tmp_path, opened, monkeypatch):
    contents = dict.fromkeys(map(str, range(70)), b"")
    monkeypatch.setattr(_zip, "_FULL16", 60)  # 65,535 would take seconds
    data = by_us(tmp_path / "many.zip", contents)
    assert b"PK\x06\x06" in data
    monkeypatch.undo()
    end = data.rindex(b"PK\x05\x06")
    assert struct.unpack_from("<2H", data, end + 8) == (60, 60)
    assert len(read_all(opened(patched(data, end + 8, b"\xff" * 4)))) == 70


@pytest.mark.parametrize("chunks", [[b"12"], [b"1234"], [b"123", b"4"]])
def test_a_member_of_another_size_is_refused(tmp_path, chunks):
    publication = Publication([tmp_path / "x.zip"])
    writer = ZipWriter(publication.files[0], ZipLayout({"a": 3, "b": 0}))
    with pytest.raises(TargetError, match="another size than announced"):
        writer.write("a", chunks)
    writer.write("b", [])
    with pytest.raises(TargetError, match="never written"):
        writer.finish()
    publication.abort()


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_what_python_writes(opened, method):
    assert read_all(opened(by_zipfile(compression=method))) == CONTENTS


def by_pipe(contents=CONTENTS, *, wide=()):
    """An archive that was never sought in: crc and sizes follow the data."""

    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def tell(self):
            raise OSError

        def seek(self, *_):
            raise OSError

    stream = Pipe()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in contents.items():
            with archive.open(name, "w", force_zip64=name in wide) as member:
                member.write(data)
        archive.comment = b"no PK here"
    return stream.getvalue()


def test_reads_descriptors_zip64_fields_and_comments(opened):
    assert read_all(opened(by_pipe(wide={"a/x"}))) == CONTENTS


def test_reads_an_archive_inside_a_file(tmp_path, opened):
    for data in (by_zipfile(), by_us(tmp_path / "x", limit=1)):
        file = opened(b"before" + data + b"after")
        assert read_all(file, start=6, stop=6 + len(data)) == CONTENTS
        with pytest.raises(CorruptFileError, match=r"end of the zip archive|not where"):
            members(file)


def test_a_checksum_proves_stored_data_only(opened):
    found = members(opened(by_zipfile(compression=zipfile.ZIP_DEFLATED)))
    assert found["a/x"].checksum is None
    found = members(opened(by_zipfile()))
    assert found["a/x"].checksum.expected == zlib.crc32(CONTENTS["a/x"])
    assert found["a/empty"].checksum is None


# ── all at once, or entry by entry ───────────────────────────────────────────────────────────────

MANY = {
    f"a/{number}": bytes([number] * 9) for number in range(100)
}  # > `_zip._FEW`, close together


def by_numpy():
    stream = io.BytesIO()
    np.savez(stream, **{name: np.arange(3) for name in ("a", "b")})
    return stream.getvalue()


def with_fields():
    """Extra fields and comments, which no two of the headers have to share."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in CONTENTS.items():
            info = zipfile.ZipInfo(name.replace("ünï", "uni"))
            info.extra, info.comment = struct.pack("<2HI", 0x4246, 4, 7), b"why " + name.encode()
            archive.writestr(info, data)
    return stream.getvalue()


def outcome(file):
    try:
        return list(members(file).items())
    except ConverterError as error:
        return type(error), error.offset, str(error)


ARCHIVES = {  # and whether they are plain
    "ours": (lambda path: by_us(path, {"a": b"1", "bb": b"22" * 999}), True),
    "ours, not ASCII": (by_us, False),
    "ours, many": (lambda path: by_us(path, MANY), True),
    "ours, wide": (lambda path: by_us(path, MANY, limit=1), False),
    "Python's": (lambda _: by_zipfile({"a": b"1", "bb": b"22"}), True),
    "deflated": (lambda _: by_zipfile(MANY, compression=zipfile.ZIP_DEFLATED), True),
    "descriptors": (lambda _: by_pipe(MANY), True),
    "descriptors, wide": (lambda _: by_pipe(MANY, wide=MANY), False),
    "fields and comments": (lambda _: with_fields(), True),
    "NumPy's": (lambda _: by_numpy(), False),
}


@pytest.mark.parametrize(("make", "plain"), ARCHIVES.values(), ids=ARCHIVES)
def test_plain_archives_are_read_at_once_as_entry_by_entry(
    tmp_path, opened, monkeypatch, make, plain
):
    """300 archives with one to three changed bytes in a header, the original among them."""
    data = np.frombuffer(make(tmp_path / "x.zip"), np.uint8)
    heads = [at for at in range(data.size) if data[at : at + 2].tobytes() == b"PK"]
    near = np.unique(np.add.outer(heads, np.arange(60)).clip(max=data.size - 1))
    rng = np.random.default_rng(8)
    fast = _zip._plain_members
    taken = []

    def counted(*args):
        taken.append(fast(*args))
        return taken[-1]

    for trial in range(300):
        mutant = data.copy()
        if trial:
            at = rng.choice(near, rng.integers(1, 4))
            mutant[at] = rng.choice([0, 1, 8, 255, rng.integers(256), mutant[at[0]] ^ 1])
        file = opened(mutant.tobytes())
        monkeypatch.setattr(_zip, "_plain_members", counted)
        at_once = outcome(file)
        monkeypatch.setattr(_zip, "_plain_members", lambda *_: None)
        assert outcome(file) == at_once
        file.close()
        if not trial:
            assert isinstance(at_once, list)
            assert (taken == [dict(at_once)]) == plain


# ── archives to refuse ───────────────────────────────────────────────────────────────────────────

TWO = by_zipfile({"aa": b"A" * 50, "bb": b"B" * 50})
SECOND = TWO.index(b"PK\x03\x04", 4)
CENTRAL = TWO.index(b"PK\x01\x02")
CENTRAL_2 = TWO.index(b"PK\x01\x02", CENTRAL + 4)
END = TWO.index(b"PK\x05\x06")


def word(data, at):
    return struct.unpack_from("<I", data, at)[0]


def end_record(count=2, nbytes=END - CENTRAL, offset=CENTRAL, comment=0):
    return struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, nbytes, offset, comment)


ATTACKS = {
    "name twice": (
        patched(patched(TWO, CENTRAL_2 + 46, b"aa"), SECOND + 30, b"aa"),
        CorruptFileError,
        "two zip members are named 'aa'",
    ),
    "same header twice": (
        patched(TWO, CENTRAL_2, TWO[CENTRAL:CENTRAL_2]),
        CorruptFileError,
        "two zip members are named",
    ),
    "other local name": (patched(TWO, 30, b"cc"), CorruptFileError, "two names"),
    "other local method": (patched(TWO, 8, b"\x08"), CorruptFileError, "two methods"),
    "other local crc": (patched(TWO, 14, b"1234"), CorruptFileError, "headers.*disagree"),
    "other local size": (patched(TWO, 18, b"\x31"), CorruptFileError, "headers.*disagree"),
    "zip64 without a field": (patched(TWO, 18, b"\xff" * 4), CorruptFileError, "zip64 field"),
    "encrypted": (patched(TWO, CENTRAL + 8, b"\x01"), UnsupportedError, "encrypted"),
    "locally encrypted": (patched(TWO, 6, b"\x01"), UnsupportedError, "encrypted"),
    "strongly encrypted": (patched(TWO, 6, b"\x40"), UnsupportedError, "encrypted"),
    "unknown method": (
        patched(patched(TWO, 8, b"\x0c"), CENTRAL + 10, b"\x0c"),
        UnsupportedError,
        "compression method 12",
    ),
    "two sizes of stored data": (
        patched(patched(TWO, 22, b"\x33"), CENTRAL + 24, b"\x33"),
        CorruptFileError,
        "two sizes",
    ),
    "quoted overlap": (
        patched(
            patched(TWO, CENTRAL + 20, struct.pack("<2I", 120, 120)),
            18,
            struct.pack("<2I", 120, 120),
        ),
        CorruptFileError,
        "overlap",
    ),
    "reaching into the directory": (
        patched(
            patched(TWO, CENTRAL_2 + 20, struct.pack("<2I", 51, 51)),
            SECOND + 18,
            struct.pack("<2I", 51, 51),
        ),
        CorruptFileError,
        "overlap",
    ),
    "header elsewhere": (patched(TWO, CENTRAL + 42, b"\x05"), CorruptFileError, "something else"),
    "header outside": (patched(TWO, CENTRAL + 42, b"\xf0\xff"), CorruptFileError, "truncated"),
    "NUL in a name": (
        patched(patched(TWO, 31, b"\0"), CENTRAL + 47, b"\0"),
        CorruptFileError,
        "has a NUL",
    ),
    "name that is not UTF-8": (
        patched(
            patched(patched(TWO, 30, b"\xff"), CENTRAL + 46, b"\xff"), CENTRAL + 8, b"\x00\x08"
        ),
        CorruptFileError,
        "not UTF-8",
    ),
    "no end": (TWO[:-1], CorruptFileError, "end of the zip archive is missing"),
    "more after the end": (TWO + b"\0", CorruptFileError, "after the end"),
    "second end in the comment": (
        TWO[:END] + end_record(comment=22) + end_record(count=1)[:-2] + b"\x01\x00",
        CorruptFileError,
        "after the end",
    ),
    "gap before the end": (
        TWO[:END] + b"????" + TWO[END:],
        CorruptFileError,
        "not where its end record says",
    ),
    "one too few": (
        TWO[:END] + end_record(count=1),
        CorruptFileError,
        "bytes too many",
    ),
    "one too many": (TWO[:END] + end_record(count=3), CorruptFileError, "ends early"),
    "too many": (TWO[:END] + end_record(count=0xFFFF), CorruptFileError, "ends early"),
    "several disks": (patched(TWO, END + 4, b"\x01"), UnsupportedError, "several pieces"),
    "member on another disk": (
        patched(TWO, CENTRAL + 34, b"\x01"),
        UnsupportedError,
        "several pieces",
    ),
    "only an end": (end_record(count=1, nbytes=46, offset=0), CorruptFileError, "not where"),
    "nothing": (b"", CorruptFileError, "end of the zip archive is missing"),
}


@pytest.mark.parametrize(("data", "error", "message"), ATTACKS.values(), ids=ATTACKS)
def test_refuses(opened, data, error, message):
    with pytest.raises(error, match=message):
        members(opened(data))


def test_refuses_a_zip64_end_that_disagrees(tmp_path, opened):
    data = by_us(tmp_path / "x", limit=1)
    wide, locator, end = (data.index(b"PK" + mark) for mark in (b"\6\6", b"\6\7", b"\5\6"))
    cases = {
        "two end records of the zip disagree": patched(data, end + 8, b"\x01\0\x01\0"),
        "several pieces": patched(data, end + 8, b"\x01"),
        "not where its locator says": patched(data, locator + 8, b"\x01"),
        "wrong size": patched(data, wide + 4, b"\x2d"),
        "not where its end record says": patched(
            patched(data, wide + 48, b"\x02"), end + 16, b"\x02"
        ),
        "zip64 field is missing": data.replace(b"\x01\x00\x18\x00", b"\x02\x00\x18\x00"),
    }
    for message, broken in cases.items():
        with pytest.raises((CorruptFileError, UnsupportedError), match=message):
            members(opened(broken))


def test_limits_members_and_the_directory(opened, monkeypatch):
    for limit in ("MAX_MEMBERS", "MAX_DIRECTORY"):
        monkeypatch.setattr(_zip, limit, 1)
        with pytest.raises(LimitError, match="too large a zip directory"):
            members(opened(TWO))
        monkeypatch.undo()


def bomb(size=60_000_000, announced=None):
    """A deflated member of zeros, 1000 times smaller than what it announces."""
    deflated = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflated.compress(bytes(size)) + deflated.flush()
    facts = (20, 0, 8, 0, 0x21, 0, len(body), size if announced is None else announced, 2)
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", *facts, 0) + b"aa"
    central = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, *facts, 0, 0, 0, 0, 0, 0) + b"aa"
    return local + body + central + end_record(1, len(central), len(local) + len(body))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (bomb(), LimitError, "too large to be read at once"),
        (bomb(10_000_000), LimitError, "1000 times its stored size"),
        (bomb(10_000_000, 5_000_000), CorruptFileError, "inflates to another size"),
        (bomb(5_000, 10_000), CorruptFileError, "inflates to another size"),
        (patched(bomb(5_000), 32, b"\xff"), CorruptFileError, "does not inflate"),
    ],
    ids=["size", "ratio", "understated", "overstated", "garbage"],
)
def test_inflates_within_bounds(opened, data, error, message):
    file = opened(data)
    with pytest.raises(error, match=message):
        read(file, members(file)["aa"], 50_000_000)


def test_reads_small_members_only_and_checks_them(opened):
    file = opened(TWO)
    with pytest.raises(LimitError, match="too large to be read at once"):
        read(file, members(file)["aa"], 49)
    file = opened(TWO.replace(b"AAAA", b"AXAA", 1))
    with pytest.raises(CorruptFileError, match="checksum of 'aa' does not match"):
        read(file, members(file)["aa"], 50)


@pytest.mark.parametrize("make", [by_zipfile, lambda: bomb(3000)], ids=["stored", "deflated"])
def test_every_truncation_is_refused(tmp_path, make):
    data = make()
    path = tmp_path / "x.zip"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        file = File(path)
        with pytest.raises(CorruptFileError, match=r"zip|truncated"):
            members(file)
        file.close()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_of_ours_or_no_damage(tmp_path_factory, data):
    whole = data.draw(st.sampled_from([TWO, bomb(100)]))
    at = data.draw(st.integers(0, len(whole) - 1))
    broken = patched(whole, at, bytes([data.draw(st.integers(0, 255))]))
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    path.write_bytes(broken)
    file = File(path)
    try:
        for name, content in read_all(file).items():
            assert content in {b"A" * 50, b"B" * 50, bytes(100)} or whole != TWO, name
    except ConverterError:
        pass
    finally:
        file.close()
