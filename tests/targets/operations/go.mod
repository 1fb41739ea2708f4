module example.com/operations

go 1.26

require example.com/monitor/steer v0.0.0

replace example.com/monitor/steer => ../steer
