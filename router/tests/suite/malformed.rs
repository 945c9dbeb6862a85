//! Requests that reach no handler: unreadable bytes, unknown methods, compressed bodies. Each has an ErrorInfo all the same.
use crate::support::*;
use crate::told;
use bytes::{Buf as _, BufMut as _, Bytes};
use carillon_proto::public::*;
use http::uri::PathAndQuery;
use prost::Message as _;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const SUBMIT: &str = "/carillon.v1.Messages/SubmitMessages";
const STREAM: &str = "/carillon.v1.Messages/StreamMessages";
/// Part of a body; must not come back.
const CANARY: &str = "CANARY";

/// Bytes as they are.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

async fn call(bed: &Bed, path: &'static str, request: Request<Bytes>) -> Status {
    let mut client: Grpc<Channel> = Grpc::new(bed.own_channel());
    client.ready().await.unwrap();
    client.unary(request, PathAndQuery::from_static(path), Raw).await.unwrap_err()
}

/// A batch with a text that is not UTF-8; as a unary request it is as bad.
fn not_utf8() -> Bytes {
    let spec = MessageSpec { body: format!("{CANARY}xx"), ..spec("north", "k") };
    let good = StreamMessagesRequest { batch_id: 2, messages: vec![spec] }.encode_to_vec();
    let at = good.windows(CANARY.len()).position(|part| part == CANARY.as_bytes()).unwrap() + CANARY.len();
    let mut bad = good;
    bad[at..at + 2].copy_from_slice(&[0xff, 0xfe]);
    bad.into()
}

fn assert_malformed(status: &Status) {
    assert_eq!(told(status), (Code::InvalidArgument, ErrorReason::MalformedRequest));
    assert!(!format!("{status:?}").contains(CANARY), "{status:?}");
    assert!(status.message().contains("UTF-8"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_request_are_the_callers_fault_and_are_not_repeated() {
    let bed = Bed::start().await;
    let garbage = Bytes::from_static(b"\xff\xff\xffCANARY");
    let cut_off = not_utf8().slice(..20);
    let mut text = SubmitMessagesRequest { messages: vec![spec("north", "k")], validate_only: false };
    text.messages[0].body = format!("{CANARY}xx");
    let mut bad_text = text.encode_to_vec();
    let at = bad_text.windows(2).position(|part| part == b"xx").unwrap();
    bad_text[at..at + 2].copy_from_slice(&[0xff, 0xfe]);
    for body in [garbage, cut_off, bad_text.into()] {
        assert_malformed(&call(&bed, SUBMIT, timed(body)).await);
    }
    assert_eq!(bed.cluster.submits(), 0);
    assert_eq!(submit(&mut bed.client(), vec![spec("north", "k")]).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_batch_ends_the_stream_after_the_answers_to_those_before() {
    let bed = Bed::start().await;
    let good = StreamMessagesRequest { batch_id: 1, messages: vec![spec("north", "k")] };
    let batches = tokio_stream::iter([Bytes::from(good.encode_to_vec()), not_utf8()]);
    let mut client: Grpc<Channel> = Grpc::new(bed.own_channel());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static(STREAM);
    let mut answers = client.streaming(Request::new(batches), path, Raw).await.unwrap().into_inner();
    let answer = StreamMessagesResponse::decode(answers.message().await.unwrap().unwrap()).unwrap();
    assert_eq!((answer.batch_id, answer.results.len()), (1, 1));
    assert_malformed(&answers.message().await.unwrap_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_methods_and_services_are_told_so() {
    let bed = Bed::start().await;
    let expected = (Code::Unimplemented, ErrorReason::UnknownMethod);
    for path in ["/carillon.v1.Messages/Nothing", "/carillon.v9.Messages/SubmitMessages", "/nothing"] {
        let status = call(&bed, path, timed(Bytes::new())).await;
        assert_eq!(told(&status), expected, "{path}");
        assert!(status.message().contains("reflection lists them"), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_requests_are_told_what_is_accepted() {
    let bed = Bed::start().await;
    for path in [SUBMIT, STREAM] {
        let mut request = timed(Bytes::new());
        request.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
        let status = call(&bed, path, request).await;
        assert_eq!(told(&status), (Code::Unimplemented, ErrorReason::CompressionUnsupported), "{path}");
        assert!(status.message().contains("send requests uncompressed"), "{status:?}");
        assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "identity");
    }
}
