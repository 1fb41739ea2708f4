package main

// goroutine gives the address of the running goroutine's descriptor.
func goroutine() uintptr
