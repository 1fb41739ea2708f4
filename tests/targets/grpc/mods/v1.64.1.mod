module grpc-target

go 1.22.0

require (
	example.com/monitor/steer v0.0.0
	golang.org/x/net v0.26.0
	google.golang.org/grpc v1.64.1
	google.golang.org/protobuf v1.33.0
)

require (
	golang.org/x/sys v0.21.0 // indirect
	golang.org/x/text v0.16.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20240318140521-94a12d6c2237 // indirect
)

replace example.com/monitor/steer => ../steer
