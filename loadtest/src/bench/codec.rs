//! A gRPC codec for the generator: requests go out as they were encoded, answers are read as far as needed.
//!
//! Why: the generator shares two cores with the cluster that it measures; encoding the same text again for each
//! message, or copying every id of an answer, would be measured too.

use bytes::{BufMut as _, Bytes};
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// `StreamMessagesResponse`, with the insides of its results left unread. The field numbers and wire types are those
/// of the public API (a test compares them).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    #[prost(uint64, tag = "1")]
    pub batch_id: u64,
    #[prost(message, repeated, tag = "2")]
    pub results: Vec<ItemAnswer>,
    /// A `google.rpc.Status`.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub error: Option<Bytes>,
}

/// `SubmitResult`: which of the two is set is all that is asked.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ItemAnswer {
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub accepted: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub error: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Answer;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        *self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Answer;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Answer>, Status> {
        Answer::decode(src).map(Some).map_err(|e| Status::internal(format!("answer does not decode: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::public::submit_result::Result as Item;
    use carillon_proto::public::{AcceptedMessage, StreamMessagesResponse, SubmitResult};

    #[test]
    fn the_lean_answer_reads_what_the_api_writes() {
        let accepted = AcceptedMessage { message_id: "x".repeat(26), segments: 2, ..Default::default() };
        let refused = carillon_proto::google::rpc::Status { code: 8, ..Default::default() };
        let response = StreamMessagesResponse {
            batch_id: 77,
            results: vec![
                SubmitResult { result: Some(Item::Accepted(accepted)) },
                SubmitResult { result: Some(Item::Error(refused.clone())) },
            ],
            error: Some(refused),
        };
        let answer = Answer::decode(response.encode_to_vec().as_slice()).unwrap();
        assert_eq!((answer.batch_id, answer.results.len()), (77, 2));
        assert!(answer.results[0].accepted.is_some() && answer.results[0].error.is_none());
        assert!(answer.results[1].accepted.is_none() && answer.results[1].error.is_some());
        assert!(answer.error.is_some());
    }
}
