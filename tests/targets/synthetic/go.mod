module synthetic-target

go 1.24.0

require github.com/cloudwego/kitex v0.16.3

require (
	github.com/bytedance/gopkg v0.1.4 // indirect
	github.com/golang/protobuf v1.5.4 // indirect
	google.golang.org/genproto v0.0.0-20210513213006-bf773b8c8384 // indirect
	google.golang.org/protobuf v1.33.0 // indirect
)
