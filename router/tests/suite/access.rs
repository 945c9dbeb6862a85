//! Who gets in, deadlines, health and reflection.
use crate::support::{Bed, Client, keyless, spec, submit, timed};
use crate::told;
use carillon_proto::public::*;
use carillon_proto::tls::TlsFiles;
use carillon_proto::transport::Cause;
use rustls::{AlertDescription, CertificateError};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_response::MessageResponse};
use tonic_types::StatusExt as _;

fn one() -> SubmitMessagesRequest {
    SubmitMessagesRequest { messages: vec![spec("north", "k")], validate_only: false }
}

async fn try_submit(mut client: Client) -> Status {
    client.submit_messages(timed(one())).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_the_clients_ca_did_not_issue_or_that_expired_fail_in_the_handshake() {
    let bed = Bed::start().await;
    let uri = "spiffe://lab/tenant/lakeside";
    let expired = bed.clients_ca.issue_until(uri, &bed.clients_ca, 2020);
    let other_ca = bed.peers_ca.issue(uri, &bed.clients_ca);
    let node = bed.peers_ca.issue("spiffe://lab/node/1", &bed.clients_ca);
    for (files, alert) in [
        (expired, AlertDescription::CertificateExpired),
        (other_ca, AlertDescription::UnknownCA),
        (node, AlertDescription::UnknownCA),
    ] {
        let status = try_submit(bed.client_with(&files)).await;
        // No handler was reached: there is no ErrorInfo, only the transport's word.
        assert_eq!(
            (status.code(), Cause::of(&status)),
            (Code::Unavailable, Some(Cause::Alert(alert))),
            "{status:?}"
        );
        assert!(status.details().is_empty());
    }
    // A client refuses a router whose CA it does not trust.
    let good = bed.clients_ca.issue(uri, &bed.clients_ca);
    let distrusting = TlsFiles { ca: bed.peers_ca.ca_file(), ..good.clone() };
    let status = try_submit(bed.client_with(&distrusting)).await;
    let cause = Cause::ServerCertificate(CertificateError::UnknownIssuer);
    assert_eq!((status.code(), Cause::of(&status)), (Code::Unavailable, Some(cause)), "{status:?}");
    assert_eq!(bed.cluster.submits(), 0);
    assert_eq!(submit(&mut bed.client_with(&good), vec![spec("north", "k")]).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_the_right_ca_with_another_role_or_cluster_is_denied() {
    let bed = Bed::start().await;
    for uri in [
        "spiffe://lab/node/1",
        "spiffe://lab/router/r1",
        "spiffe://lab/operator/ann",
        "spiffe://other/tenant/lakeside",
        "spiffe://lab/unheard/of",
    ] {
        let mut client = bed.client_as(uri);
        let status = client.submit_messages(timed(one())).await.unwrap_err();
        assert_eq!(told(&status), (Code::PermissionDenied, ErrorReason::WrongIdentity), "{uri}");
        let status = client.get_message(timed(GetMessageRequest::default())).await.unwrap_err();
        assert_eq!(told(&status).1, ErrorReason::WrongIdentity);
        let status = client.list_messages(timed(ListMessagesRequest::default())).await.unwrap_err();
        assert_eq!(told(&status).1, ErrorReason::WrongIdentity);
        let status = client.cancel_messages(timed(CancelMessagesRequest::default())).await.unwrap_err();
        assert_eq!(told(&status).1, ErrorReason::WrongIdentity);
        let status = client.watch_events(WatchEventsRequest::default()).await.unwrap_err();
        assert_eq!(told(&status).1, ErrorReason::WrongIdentity);
        let status = client.stream_messages(tokio_stream::empty()).await.unwrap_err();
        assert_eq!(told(&status).1, ErrorReason::WrongIdentity);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_unary_call_needs_a_deadline() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    let expected = (Code::InvalidArgument, ErrorReason::DeadlineRequired);
    assert_eq!(told(&client.submit_messages(one()).await.unwrap_err()), expected);
    assert_eq!(told(&client.get_message(GetMessageRequest::default()).await.unwrap_err()), expected);
    assert_eq!(told(&client.list_messages(ListMessagesRequest::default()).await.unwrap_err()), expected);
    assert_eq!(told(&client.cancel_messages(CancelMessagesRequest::default()).await.unwrap_err()), expected);
    let mut unreadable = Request::new(one());
    unreadable.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_eq!(told(&client.submit_messages(unreadable).await.unwrap_err()), expected);
    assert_eq!(bed.cluster.submits(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_too_large_is_refused_as_a_whole() {
    let bed = Bed::start().await;
    let messages = (0..4).map(|_| MessageSpec { body: "x".repeat(2 << 20), ..keyless("north") }).collect();
    let request = SubmitMessagesRequest { messages, validate_only: false };
    let status = bed.client().submit_messages(timed(request)).await.unwrap_err();
    assert_eq!(told(&status), (Code::InvalidArgument, ErrorReason::RequestTooLarge));
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["bytes_max"], "4194304");
    assert_eq!(bed.cluster.submits(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_follows_readiness_and_reflection_shows_the_public_service() {
    let bed = Bed::start().await;
    let files = bed.clients_ca.issue("spiffe://lab/tenant/lakeside", &bed.clients_ca);
    let channel = bed.channel(&files);
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "carillon.v1.Messages"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    }
    assert!(bed.router.ready_check()().is_ok());

    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("not a list of services")
    };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    for name in ["carillon.v1.Messages", "carillon.v1.Appointments", "grpc.health.v1.Health"] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("internal") || name.contains("admin")), "{names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_of_both_versions_knows_the_details_of_errors() {
    use tonic_reflection::pb::v1alpha::ServerReflectionRequest as OldRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient as OldClient;
    use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest as OldAsk;
    use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse as OldAnswer;
    let bed = Bed::start().await;
    let channel = bed.own_channel();
    for symbol in
        ["google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo", "grpc.health.v1.Health"]
    {
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileContainingSymbol(symbol.to_owned())),
        };
        let mut client = ServerReflectionClient::new(channel.clone());
        let mut answers =
            client.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{symbol}: {answer:?}");

        let ask = OldRequest {
            host: String::new(),
            message_request: Some(OldAsk::FileContainingSymbol(symbol.to_owned())),
        };
        let mut client = OldClient::new(channel.clone());
        let mut answers =
            client.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        assert!(matches!(answer, Some(OldAnswer::FileDescriptorResponse(_))), "{symbol}: {answer:?}");
    }
}
