module example.com/monitor/offsets

go 1.24
