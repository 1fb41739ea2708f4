module example.com/web

go 1.18

require example.com/monitor/steer v0.0.0

replace example.com/monitor/steer => ../steer
