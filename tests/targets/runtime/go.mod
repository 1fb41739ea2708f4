module example.com/monitor/runtime

go 1.18
