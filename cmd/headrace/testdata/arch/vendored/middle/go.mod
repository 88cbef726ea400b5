module example.com/middle

go 1.26.0
