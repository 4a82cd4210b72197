"""A proxy made of the official stubs: asks for endpoints, then reports loads; prints what it was told as JSON.

Run by test_xds_stubs.py in a process of its own, because these stubs overwrite modules of other packages.
Arguments: port, cluster, CA file or "", token for reading, token for writing.
"""

import json
import queue
import sys

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2, load_report_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.endpoint.v3 import eds_pb2_grpc
from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc
from google.protobuf import json_format
from google.rpc import status_pb2

TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
NODE = base_pb2.Node(id="stub", cluster="c", locality=base_pb2.Locality(zone="z7"))


def plain(message):
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def token(secret):
    return (("authorization", f"Bearer {secret}"),) if secret else ()


def ask(method, cluster, secret):
    """What is told first, and whether nothing more is after a refusal."""
    said = queue.SimpleQueue()
    answers = method(iter(said.get, None), metadata=token(secret))
    said.put(discovery_pb2.DiscoveryRequest(node=NODE, resource_names=[cluster], type_url=TYPE))
    first = next(answers)
    assignment = endpoint_pb2.ClusterLoadAssignment()
    assert first.resources[0].Unpack(assignment)
    refusal = status_pb2.Status(code=3, message="not this")
    said.put(
        discovery_pb2.DiscoveryRequest(
            resource_names=[cluster], type_url=TYPE, response_nonce=first.nonce, error_detail=refusal
        )
    )
    said.put(None)  # half-closes after the refusal
    return {"version": first.version_info, "type": first.type_url, "assignment": plain(assignment)}, list(answers)


def report(method, cluster, place, secret):
    """What we are asked to report."""
    said = queue.SimpleQueue()
    answers = method(iter(said.get, None), metadata=token(secret))
    said.put(lrs_pb2.LoadStatsRequest(node=NODE))
    wanted = next(answers)
    load = load_report_pb2.UpstreamEndpointStats(total_successful_requests=40, total_error_requests=2)
    load.address.socket_address.address, load.address.socket_address.port_value = place
    group = load_report_pb2.UpstreamLocalityStats(
        locality=base_pb2.Locality(zone="z2"), total_successful_requests=40, upstream_endpoint_stats=[load]
    )
    stats = load_report_pb2.ClusterStats(cluster_name=cluster, upstream_locality_stats=[group])
    stats.load_report_interval.seconds = 2
    said.put(lrs_pb2.LoadStatsRequest(node=NODE, cluster_stats=[stats]))
    said.put(None)
    assert list(answers) == []
    return plain(wanted)


def main():
    port, cluster, ca, reading, writing = sys.argv[1:]
    target = f"127.0.0.1:{port}"
    channel = grpc.insecure_channel(target)
    if ca:
        with open(ca, "rb") as file:
            channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(file.read()))
    with channel:
        told, more = ask(eds_pb2_grpc.EndpointDiscoveryServiceStub(channel).StreamEndpoints, cluster, reading)
        assert more == []
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        refused = {}
        for name, secret in (("none", ""), ("writer", writing)):
            try:
                next(stub.StreamAggregatedResources(iter(()), metadata=token(secret)))
            except grpc.RpcError as error:
                refused[name] = error.code().name
            except StopIteration:
                refused[name] = "OK"
        lrs = lrs_pb2_grpc.LoadReportingServiceStub(channel).StreamLoadStats
        print(json.dumps({"told": told, "refused": refused, "wanted": report(lrs, cluster, ("10.0.0.1", 80), writing)}))


main()
