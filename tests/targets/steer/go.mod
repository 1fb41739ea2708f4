module example.com/monitor/steer

go 1.18
