// Prints what Go's archive/tar reads, for the comparison in tests/archives.
//
// Input: archives, each preceded by its length (8 bytes, little-endian). Output, for each of them:
// a line for each entry, then "end", or "error" and Go's error text. Fields are separated by
// spaces, text is in hex.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sort"
	"strings"
)

// No more is read: a sparse file can have any size.
const most = 64 << 20

func main() {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	defer out.Flush()
	for {
		var length uint64
		if binary.Read(in, binary.LittleEndian, &length) != nil {
			return
		}
		archive := make([]byte, length)
		if _, err := io.ReadFull(in, archive); err != nil {
			panic(err)
		}
		if err := read(archive, out); err == io.EOF {
			fmt.Fprintln(out, "end")
		} else {
			fmt.Fprintln(out, "error", err)
		}
	}
}

func read(archive []byte, out io.Writer) error {
	source := bytes.NewReader(archive)
	reader := tar.NewReader(source)
	for {
		header, err := reader.Next()
		if err != nil {
			return err
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		position := len(archive) - source.Len()
		var names, attributes []string
		for key := range header.PAXRecords {
			if strings.HasPrefix(key, "SCHILY.xattr.") {
				names = append(names, key)
			}
		}
		sort.Strings(names)
		for _, key := range names {
			name := strings.TrimPrefix(key, "SCHILY.xattr.")
			attributes = append(attributes, fmt.Sprintf("%x:%x", name, header.PAXRecords[key]))
		}
		kind, link, size := header.Typeflag, "", header.Size
		var major, minor uint32
		switch kind {
		case tar.TypeCont, tar.TypeGNUSparse:
			kind = tar.TypeReg
		case tar.TypeLink, tar.TypeSymlink:
			link, size = header.Linkname, 0
		case tar.TypeChar, tar.TypeBlock:
			// The kernel has no more bits.
			major, minor, size = uint32(header.Devmajor)&0xfff, uint32(header.Devminor)&0xfffff, 0
		case tar.TypeDir, tar.TypeFifo:
			size = 0
		}
		content := "unread"
		if size <= most {
			sum := crc32.NewIEEE()
			n, err := io.Copy(sum, reader)
			if err != nil {
				return err
			}
			content = fmt.Sprintf("%d:%08x", n, sum.Sum32())
		}
		fmt.Fprintf(out, "%d %d %x %x %o %d %d %d.%09d %d %d %d %s [%s]\n",
			position, kind, header.Name, link, header.Mode&07777, uint32(header.Uid), uint32(header.Gid),
			header.ModTime.Unix(), header.ModTime.Nanosecond(), size, major, minor, content, strings.Join(attributes, " "))
	}
}
