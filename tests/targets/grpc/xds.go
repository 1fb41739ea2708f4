//go:build xds

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	clusters "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoints "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listeners "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rules "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routes "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faults "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	manager "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	percents "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	control_plane "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// way is how clients find servers: here by what a control plane in this process tells both.
type way struct {
	bootstrap []byte
	resolver  resolver.Builder
	snapshots cache.SnapshotCache
	// asked counts what the control plane has been asked, and told that its answers were taken.
	asked atomic.Int64
	// deaf goes where plain goes and has no ears, for calls that gRPC refuses behind them.
	deaf *grpc.ClientConn
}

const (
	node = "monitor-test"
	// serverListener names what a server asks for, by its address.
	serverListener = "server/%s"
	// denied is a header with which the server's filter refuses a call.
	denied = "x-denied"
	// fault is the header whose code the client's filter ends a call with.
	fault = "x-envoy-fault-abort-grpc-request"
)

// more is what the control plane makes of calls.
var more = []scenario{
	{"denied by the server's filter", deniedByFilter},
	{"without a route on the server", withoutServerRoute},
	{"without a route on the client", withoutClientRoute},
	{"with a fault from the client's filter", withFault},
}

func newWay() (*way, error) {
	w := &way{snapshots: cache.NewSnapshotCache(false, cache.IDHash{}, nil)}
	ask := func(int64, *discovery.DiscoveryRequest) error {
		w.asked.Add(1)
		return nil
	}
	service := control_plane.NewServer(context.Background(), w.snapshots, control_plane.CallbackFuncs{StreamRequestFunc: ask})
	server := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(server, service)
	address, err := listen(server.Serve)
	if err != nil {
		return nil, err
	}
	w.bootstrap, err = json.Marshal(map[string]any{
		"xds_servers": []any{map[string]any{
			"server_uri": address, "channel_creds": []any{map[string]any{"type": "insecure"}}, "server_features": []any{"xds_v3"},
		}},
		"node":                                   map[string]any{"id": node},
		"server_listener_resource_name_template": serverListener,
	})
	if err != nil {
		return nil, err
	}
	w.resolver, err = xds.NewXDSResolverWithConfigForTesting(w.bootstrap)
	return w, err
}

func (w *way) server(options ...grpc.ServerOption) (server, error) {
	return xds.NewGRPCServer(append(options, xds.BootstrapContentsForTesting(w.bootstrap))...)
}

func (w *way) plain(string) target { return w.target("plain") }

func (w *way) retrying(string) target { return w.target("retrying") }

func (w *way) dead(string) target { return w.target("dead") }

func (w *way) target(name string) target {
	return target{"xds:///" + name, []grpc.DialOption{grpc.WithResolvers(w.resolver)}}
}

// open has the control plane say where the servers are.
func (w *way) open(address, nowhere string) error {
	retry := &routes.RetryPolicy{
		RetryOn: "unavailable", NumRetries: wrapperspb.UInt32(3),
		RetryBackOff: &routes.RetryPolicy_RetryBackOff{
			BaseInterval: durationpb.New(time.Millisecond), MaxInterval: durationpb.New(2 * time.Millisecond),
		},
	}
	snapshot, err := cache.NewSnapshot("1", map[resource.Type][]types.Resource{
		resource.ListenerType: {
			serverSide(address), clientSide("plain", nil), clientSide("retrying", retry), clientSide("dead", nil),
		},
		resource.ClusterType:  {cluster("plain"), cluster("retrying"), cluster("dead")},
		resource.EndpointType: {endpoint("plain", address), endpoint("retrying", address), endpoint("dead", nowhere)},
	})
	if err != nil {
		return err
	}
	return w.snapshots.SetSnapshot(context.Background(), node, snapshot)
}

// settle waits until the connections stand and the control plane isn't asked anything any more: its own calls, which no ear
// hears, are none of those that are counted.
func (w *way) settle(s *stage) error {
	to := w.target("plain")
	var err error
	w.deaf, err = grpc.Dial(to.name, append(to.options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for connection, wanted := range map[*grpc.ClientConn]connectivity.State{
		s.plain: connectivity.Ready, s.retrying: connectivity.Ready, w.deaf: connectivity.Ready, s.dead: connectivity.TransientFailure,
	} {
		connection.Connect()
		for state := connection.GetState(); state != wanted; state = connection.GetState() {
			if !connection.WaitForStateChange(ctx, state) {
				return fmt.Errorf("%s is %v, not %v", connection.Target(), state, wanted)
			}
			connection.Connect()
		}
	}
	for asked := int64(-1); asked != w.asked.Load(); time.Sleep(300 * time.Millisecond) {
		asked = w.asked.Load()
	}
	return nil
}

// serverSide is the listener of a server: a filter denies what has a header, and the route of a service is none for a server.
func serverSide(address string) *listeners.Listener {
	host, port, _ := net.SplitHostPort(address)
	number, _ := strconv.ParseUint(port, 10, 32)
	deny := &rbac.RBAC{Rules: &rules.RBAC{Action: rules.RBAC_DENY, Policies: map[string]*rules.Policy{"denied": {
		Permissions: []*rules.Permission{{Rule: &rules.Permission_Header{Header: &routes.HeaderMatcher{
			Name: denied, HeaderMatchSpecifier: &routes.HeaderMatcher_PresentMatch{PresentMatch: true},
		}}}},
		Principals: []*rules.Principal{{Identifier: &rules.Principal_Any{Any: true}}},
	}}}}
	elsewhere := &routes.Route{
		Match:  &routes.RouteMatch{PathSpecifier: &routes.RouteMatch_Prefix{Prefix: "/" + misrouted + "/"}},
		Action: &routes.Route_Route{Route: &routes.RouteAction{ClusterSpecifier: &routes.RouteAction_Cluster{Cluster: "plain"}}},
	}
	here := &routes.Route{
		Match:  &routes.RouteMatch{PathSpecifier: &routes.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routes.Route_NonForwardingAction{},
	}
	return &listeners.Listener{
		Name: fmt.Sprintf(serverListener, address),
		Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
			Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(number)},
		}}},
		FilterChains: []*listeners.FilterChain{{Name: "any", Filters: []*listeners.Filter{{
			Name: "http", ConfigType: &listeners.Filter_TypedConfig{TypedConfig: packed(&manager.HttpConnectionManager{
				RouteSpecifier: inline("server", elsewhere, here),
				HttpFilters:    []*manager.HttpFilter{filter("rbac", deny), filter("router", &router.Router{})},
			})},
		}}}},
	}
}

// clientSide is the listener of a client's target: a filter ends calls with the code that a header names, and only calls of
// the test's own services have a route.
func clientSide(name string, retry *routes.RetryPolicy) *listeners.Listener {
	abort := &faults.HTTPFault{Abort: &faults.FaultAbort{
		ErrorType:  &faults.FaultAbort_HeaderAbort_{HeaderAbort: &faults.FaultAbort_HeaderAbort{}},
		Percentage: &percents.FractionalPercent{Numerator: 100},
	}}
	route := &routes.Route{
		Match: &routes.RouteMatch{PathSpecifier: &routes.RouteMatch_Prefix{Prefix: "/monitor.test."}},
		Action: &routes.Route_Route{Route: &routes.RouteAction{
			ClusterSpecifier: &routes.RouteAction_Cluster{Cluster: name}, RetryPolicy: retry,
		}},
	}
	return &listeners.Listener{Name: name, ApiListener: &listeners.ApiListener{ApiListener: packed(&manager.HttpConnectionManager{
		RouteSpecifier: inline(name, route),
		HttpFilters:    []*manager.HttpFilter{filter("fault", abort), filter("router", &router.Router{})},
	})}}
}

func inline(name string, all ...*routes.Route) *manager.HttpConnectionManager_RouteConfig {
	return &manager.HttpConnectionManager_RouteConfig{RouteConfig: &routes.RouteConfiguration{
		Name: name, VirtualHosts: []*routes.VirtualHost{{Name: name, Domains: []string{"*"}, Routes: all}},
	}}
}

func filter(name string, config proto.Message) *manager.HttpFilter {
	return &manager.HttpFilter{Name: name, ConfigType: &manager.HttpFilter_TypedConfig{TypedConfig: packed(config)}}
}

func cluster(name string) *clusters.Cluster {
	return &clusters.Cluster{
		Name: name, ClusterDiscoveryType: &clusters.Cluster_Type{Type: clusters.Cluster_EDS}, LbPolicy: clusters.Cluster_ROUND_ROBIN,
		EdsClusterConfig: &clusters.Cluster_EdsClusterConfig{ServiceName: name, EdsConfig: &core.ConfigSource{
			ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
		}},
	}
}

func endpoint(name, address string) *endpoints.ClusterLoadAssignment {
	host, port, _ := net.SplitHostPort(address)
	number, _ := strconv.ParseUint(port, 10, 32)
	return &endpoints.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoints.LocalityLbEndpoints{{
		Locality: &core.Locality{SubZone: "here"}, LoadBalancingWeight: wrapperspb.UInt32(1),
		LbEndpoints: []*endpoints.LbEndpoint{{HostIdentifier: &endpoints.LbEndpoint_Endpoint{Endpoint: &endpoints.Endpoint{
			Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
				Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(number)},
			}}},
		}}}},
	}}}
}

func packed(message proto.Message) *anypb.Any {
	any, err := anypb.New(message)
	if err != nil {
		panic(err)
	}
	return any
}

// refusedInside makes a call and a stream that the server refuses once they have begun, before it asks an interceptor.
func refusedInside(ctx context.Context, s *stage, name string, wanted codes.Code) error {
	if err := fails(wanted, s.plain.Invoke(ctx, "/"+name+"/Call", &text{}, new(text))); err != nil {
		return err
	}
	s.tally.begunAndRefused(newKind("server", "/"+name+"/Call", false, false), wanted)
	stream, err := s.plain.NewStream(ctx, &echo, "/"+name+"/Chat")
	if err != nil {
		return err
	}
	s.tally.begunAndRefused(newKind("server", "/"+name+"/Chat", true, true), wanted)
	return fails(wanted, stream.RecvMsg(new(text)))
}

func deniedByFilter(s *stage) error {
	ctx := metadata.AppendToOutgoingContext(context.Background(), denied, "yes")
	return refusedInside(ctx, s, service, codes.PermissionDenied)
}

func withoutServerRoute(s *stage) error {
	return refusedInside(context.Background(), s, misrouted, codes.Unavailable)
}

// withoutClientRoute makes a call that has no route, so that the client makes no attempt.
func withoutClientRoute(s *stage) error {
	err := s.way.deaf.Invoke(context.Background(), "/elsewhere.Service/Method", &text{}, new(text))
	return fails(codes.Unavailable, err)
}

// withFault makes a call that the client's filter ends before there is an attempt.
func withFault(s *stage) error {
	ctx := metadata.AppendToOutgoingContext(context.Background(), fault, strconv.Itoa(int(codes.ResourceExhausted)))
	return fails(codes.ResourceExhausted, call(ctx, s.way.deaf, "hello"))
}
