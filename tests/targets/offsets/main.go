// Offsets prints where the Go runtime keeps the values that the agent reads from a target's memory, by the DWARF of a
// Go program: what `cargo xtask gotable` makes its tables of.
//
//	go run . EXECUTABLE <PATHS
//
// A path names a type or a variable of the package runtime and fields in it, as in sched.gFree.stack.size. The answer
// has the distance in bytes from the start of the type or variable for each path there is; a path that ends in # asks
// for the size instead.
package main

import (
	"bufio"
	"debug/dwarf"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: offsets EXECUTABLE <PATHS")
		os.Exit(2)
	}
	found, err := offsets(os.Args[1])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(found)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "offsets:", err)
		os.Exit(1)
	}
}

func offsets(path string) (map[string]int64, error) {
	file, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := file.DWARF()
	if err != nil {
		return nil, err
	}
	roots, err := roots(data)
	if err != nil {
		return nil, err
	}
	found := map[string]int64{}
	for paths := bufio.NewScanner(os.Stdin); paths.Scan(); {
		path := paths.Text()
		names := strings.Split(strings.TrimSuffix(path, "#"), ".")
		offset, described := walk(roots[names[0]], names[1:])
		switch {
		case described == nil:
		case strings.HasSuffix(path, "#"):
			found[path] = described.Size()
		default:
			found[path] = offset
		}
	}
	return found, nil
}

// roots gives the structs of the package runtime and the types of its variables, by their names in the package.
func roots(data *dwarf.Data) (map[string]dwarf.Type, error) {
	found := map[string]dwarf.Type{}
	for reader := data.Reader(); ; {
		entry, err := reader.Next()
		if err != nil || entry == nil {
			return found, err
		}
		if entry.Tag == dwarf.TagSubprogram {
			reader.SkipChildren()
		}
		full, _ := entry.Val(dwarf.AttrName).(string)
		name, ok := strings.CutPrefix(full, "runtime.")
		if !ok {
			continue
		}
		offset := entry.Offset
		switch entry.Tag {
		case dwarf.TagStructType:
		case dwarf.TagVariable:
			offset, ok = entry.Val(dwarf.AttrType).(dwarf.Offset)
			if !ok {
				continue
			}
		default:
			continue
		}
		described, err := data.Type(offset)
		if err != nil {
			return nil, err
		}
		found[name] = described
	}
}

func walk(described dwarf.Type, names []string) (int64, dwarf.Type) {
	var offset int64
	for _, name := range names {
		for {
			named, ok := described.(*dwarf.TypedefType)
			if !ok {
				break
			}
			described = named.Type
		}
		outer, ok := described.(*dwarf.StructType)
		if !ok {
			return 0, nil
		}
		described = nil
		for _, field := range outer.Field {
			// Fields of anonymous structs have their package before their name.
			if strings.TrimPrefix(field.Name, "runtime.") == name {
				offset += field.ByteOffset
				described = field.Type
			}
		}
	}
	return offset, described
}
