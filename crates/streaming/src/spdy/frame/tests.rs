use super::*;

fn headers(pairs: &[(&str, &str)]) -> Headers {
    Headers(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
}

fn decode_all(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Frame>, Error> {
    let mut buffer = BytesMut::from(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.decode(&mut buffer)? {
        frames.push(frame);
    }
    Ok(frames)
}

fn all() -> Vec<Frame> {
    let stdin = headers(&[("streamtype", "stdin")]);
    vec![
        Frame::SynStream {
            stream: 1,
            associated: 0,
            priority: 3,
            fin: false,
            unidirectional: false,
            headers: headers(&[("streamtype", "error"), ("port", "8080"), ("requestid", "0")]),
        },
        Frame::SynStream {
            stream: 3,
            associated: 1,
            priority: 7,
            fin: true,
            unidirectional: true,
            headers: stdin.clone(),
        },
        Frame::SynReply { stream: 1, fin: false, headers: Headers::default() },
        Frame::Headers { stream: 1, fin: true, headers: stdin },
        Frame::Data { stream: 1, fin: false, data: Bytes::from_static(b"hello") },
        Frame::Data { stream: 1, fin: true, data: Bytes::new() },
        Frame::Settings { entries: vec![(SETTINGS_INITIAL_WINDOW_SIZE, 1 << 20), (4, 100)] },
        Frame::Ping { id: 7 },
        Frame::RstStream { stream: 3, status: 5 },
        Frame::WindowUpdate { stream: 0, delta: 4096 },
        Frame::GoAway { last_stream: 3, status: 0 },
    ]
}

#[test]
fn frames_come_back() {
    let mut encoder = Encoder::new().unwrap();
    let mut bytes = BytesMut::new();
    for frame in all() {
        encoder.encode(&frame, &mut bytes).unwrap();
    }
    assert_eq!(decode_all(&mut Decoder::new(), &bytes).unwrap(), all());
    // And when they arrive byte by byte.
    let (mut decoder, mut buffer, mut frames) = (Decoder::new(), BytesMut::new(), Vec::new());
    let mut text = Vec::new();
    for byte in bytes {
        buffer.put_u8(byte);
        while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
            match frame {
                Frame::Data { data, fin: false, .. } => text.extend_from_slice(&data),
                frame => frames.push(frame),
            }
        }
    }
    let whole = |frame: &Frame| !matches!(frame, Frame::Data { fin: false, .. });
    assert_eq!((frames, text), (all().into_iter().filter(whole).collect(), b"hello".to_vec()));
}

#[test]
fn frames_as_on_the_wire() {
    let table: [(&[u8], Frame); 6] = [
        (&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9], Frame::Ping { id: 9 }),
        (&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 5], Frame::RstStream { stream: 5, status: 5 }),
        (
            &[0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 1, 0, 0, 7, 0, 1, 0, 0],
            Frame::Settings { entries: vec![(7, 65536)] },
        ),
        (
            &[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0x80, 0, 0, 2],
            Frame::WindowUpdate { stream: 1, delta: 2 },
        ),
        (&[0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0], Frame::GoAway { last_stream: 1, status: 0 }),
        (
            &[0, 0, 0, 3, 1, 0, 0, 2, b'h', b'i'],
            Frame::Data { stream: 3, fin: true, data: Bytes::from_static(b"hi") },
        ),
    ];
    for (bytes, frame) in table {
        assert_eq!(decode_all(&mut Decoder::new(), bytes).unwrap(), std::slice::from_ref(&frame));
    }
}

const FOREIGN_SYN_STREAM: &[u8] = &[
    0x80, 0x03, 0x00, 0x01, 0x00, 0x00, 0x00, 0x2a, 0x00, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xa6, 0x23, 0x46, 0x70, 0x3a, 0x2b, 0x29, 0x4a, 0x4d,
    0xcc, 0x85, 0x16, 0x25, 0xc0, 0x14, 0x9b, 0x92, 0x5f, 0x5a, 0x02, 0x00, 0x00, 0x00, 0xff, 0xff,
];

/// A SYN_STREAM whose headers another zlib has compressed: `streamtype: stdout`, dictionary id E3C6A7C2.
#[test]
fn headers_of_another_implementation() {
    let bytes = FOREIGN_SYN_STREAM;
    let frames = decode_all(&mut Decoder::new(), bytes).unwrap();
    let want = Frame::SynStream {
        stream: 5,
        associated: 0,
        priority: 0,
        fin: false,
        unidirectional: false,
        headers: headers(&[("streamtype", "stdout")]),
    };
    assert_eq!(frames, [want]);
}

#[test]
fn names_are_found_whatever_their_case() {
    let sent = headers(&[("StreamType", "data\0error")]);
    assert_eq!(sent.get("streamtype"), "data");
    assert_eq!(sent.get("port"), "");
}

#[test]
fn long_data_comes_in_pieces() {
    let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::new());
    buffer.put_slice(&[0, 0, 0, 1, 1, 1, 0, 0]);
    buffer.put_bytes(b'x', CHUNK_LEN_MAX + 10);
    let mut lengths = Vec::new();
    while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
        let Frame::Data { data, fin: false, stream: 1 } = frame else { panic!("{frame:?}") };
        lengths.push(data.len());
    }
    assert_eq!(lengths, [CHUNK_LEN_MAX, 10]);
    buffer.put_bytes(b'x', 65536 - CHUNK_LEN_MAX - 10);
    let last = decoder.decode(&mut buffer).unwrap();
    assert!(matches!(last, Some(Frame::Data { fin: true, .. })), "the flag goes with the last piece");
}

#[test]
fn what_is_not_spdy_is_an_error() {
    let table: [(&[u8], Error); 7] = [
        (&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9], Error::Version(2)),
        (&[0x80, 3, 0, 1, 0, 1, 0, 0], Error::TooLong(65536)),
        (&[0x80, 3, 0, 6, 0, 0, 0, 3, 0, 0, 0], Error::Length(PING)),
        (&[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0], Error::Length(SYN_STREAM)),
        (&[0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff], Error::Length(SETTINGS)),
        (&[0x80, 3, 0, 2, 0, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4], Error::Headers("damaged compression")),
        (&[0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, 1], Error::Headers("cut off")),
    ];
    for (bytes, want) in table {
        assert_eq!(decode_all(&mut Decoder::new(), bytes), Err(want), "{bytes:?}");
    }
    // Unknown types are skipped.
    let unknown = [0x80, 3, 0, 99, 0, 0, 0, 1, 0, 0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    assert_eq!(decode_all(&mut Decoder::new(), &unknown).unwrap(), [Frame::Ping { id: 1 }]);
}

#[test]
fn headers_are_bounded() {
    let long = "x".repeat(HEADERS_LEN_MAX);
    let many: Vec<_> = (0..=HEADERS_MAX).map(|i| (format!("n{i}"), String::new())).collect();
    for (sent, want) in [(headers(&[("a", &long)]), "over the limit"), (Headers(many), "too many")] {
        let mut bytes = BytesMut::new();
        let frame = Frame::SynReply { stream: 1, fin: false, headers: sent };
        Encoder::new().unwrap().encode(&frame, &mut bytes).unwrap();
        assert_eq!(decode_all(&mut Decoder::new(), &bytes), Err(Error::Headers(want)));
    }
}
