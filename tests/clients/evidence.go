// SPDX-License-Identifier: MIT

// Reads all evidence of a device: evidence DEVICE DIR.
//
// Each object goes to a file DIR/NAME.bin. Written for a kernel that has the family "pci-tsm".
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

const evidenceRead = 1

const (
	attrType     = 1
	attrTypeMask = 2
	attrDevName  = 4
	attrVal      = 6
)

var names = []string{
	"cert0", "cert1", "cert2", "cert3", "cert4", "cert5", "cert6", "cert7",
	"vca", "measurements", "report",
}

// readEvidence returns the objects of a device by their names.
func readEvidence(conn *genetlink.Conn, device string) (map[string][]byte, error) {
	family, err := conn.GetFamily("pci-tsm")
	if err != nil {
		return nil, err
	}
	encoder := netlink.NewAttributeEncoder()
	encoder.Uint32(attrTypeMask, 1<<len(names)-1)
	encoder.String(attrDevName, device)
	data, err := encoder.Encode()
	if err != nil {
		return nil, err
	}
	request := genetlink.Message{
		Header: genetlink.Header{Command: evidenceRead, Version: family.Version},
		Data:   data,
	}
	replies, err := conn.Execute(request, family.ID, netlink.Request|netlink.Dump)
	if err != nil {
		return nil, err
	}

	objects := make(map[string][]byte)
	name := ""
	for _, reply := range replies {
		decoder, err := netlink.NewAttributeDecoder(reply.Data)
		if err != nil {
			return nil, err
		}
		for decoder.Next() {
			switch decoder.Type() {
			case attrType:
				kind := decoder.Uint32()
				if int(kind) >= len(names) {
					return nil, fmt.Errorf("unknown object %d", kind)
				}
				name = names[kind]
			case attrVal:
				objects[name] = append(objects[name], decoder.Bytes()...)
			}
		}
		if err := decoder.Err(); err != nil {
			return nil, err
		}
	}
	return objects, nil
}

func run(device, directory string) error {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	objects, err := readEvidence(conn, device)
	if err != nil {
		return err
	}
	for name, content := range objects {
		path := filepath.Join(directory, name+".bin")
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintf(os.Stderr, "usage: %s DEVICE DIR\n", os.Args[0])
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		var number syscall.Errno
		if errors.As(err, &number) {
			err = number
		}
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
