module plain-go

go 1.24.0
