// Layout prints what the symbol table and the DWARF of a Go program say about functions, itabs and structs: a
// second opinion on what the agent reads from the tables of the Go runtime.
//
//	go run . EXECUTABLE PACKAGE-PREFIX
package main

import (
	"debug/buildinfo"
	"debug/dwarf"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

type layout struct {
	GoVersion string                      `json:"go_version"`
	Modules   map[string]string           `json:"modules"`
	Symbols   map[string]uint64           `json:"symbols"`
	Fields    map[string]map[string]int64 `json:"fields"`
	Sizes     map[string]int64            `json:"sizes"`
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: layout EXECUTABLE PACKAGE-PREFIX")
		os.Exit(2)
	}
	found, err := read(os.Args[1], os.Args[2])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(found)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "layout:", err)
		os.Exit(1)
	}
}

func read(path, prefix string) (*layout, error) {
	l := &layout{
		Modules: map[string]string{},
		Symbols: map[string]uint64{},
		Fields:  map[string]map[string]int64{},
		Sizes:   map[string]int64{},
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, err
	}
	l.GoVersion = info.GoVersion
	for _, module := range info.Deps {
		l.Modules[module.Path] = module.Version
	}
	file, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	symbols, err := file.Symbols()
	if err != nil {
		return nil, err
	}
	for _, symbol := range symbols {
		itab := strings.TrimPrefix(symbol.Name, "go:itab.*")
		if strings.HasPrefix(itab, prefix) || strings.HasPrefix(itab, "net.TCPAddr,") {
			l.Symbols[symbol.Name] = symbol.Value
		}
	}
	data, err := file.DWARF()
	if err != nil {
		return nil, err
	}
	return l, l.structs(data, prefix)
}

// others are structs outside of the packages that calls lead to, and those that the runtime makes for maps.
var others = []string{"net.TCPAddr", "sync/atomic.Pointer[", "sync/atomic.Value", "noalg.map.group[", "map.group["}

// structs adds the named structs of the packages, and the others.
func (l *layout) structs(data *dwarf.Data, prefix string) error {
	for reader := data.Reader(); ; {
		entry, err := reader.Next()
		if err != nil || entry == nil {
			return err
		}
		if entry.Tag == dwarf.TagSubprogram {
			reader.SkipChildren()
		}
		name, _ := entry.Val(dwarf.AttrName).(string)
		isWanted := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
		if entry.Tag != dwarf.TagStructType || !isWanted(prefix) && !slices.ContainsFunc(others, isWanted) {
			continue
		}
		described, err := data.Type(entry.Offset)
		if err != nil {
			return err
		}
		fields := map[string]int64{}
		for _, field := range described.(*dwarf.StructType).Field {
			fields[field.Name] = field.ByteOffset
		}
		l.Fields[name] = fields
		l.Sizes[name] = described.Size()
	}
}
