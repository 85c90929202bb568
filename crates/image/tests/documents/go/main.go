// Reads documents as Go does, for comparison. Input, for each document: a letter for its type, its
// length in four bytes, and its bytes. Output: a line for each, with every field, or the word
// "error". Texts are written as hexadecimal digits.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"sort"
	"strings"
)

// Words is Docker's list of words, which may be a single one.
type Words []string

func (w *Words) UnmarshalJSON(text []byte) error {
	list := []string{}
	if json.Unmarshal(text, &list) != nil {
		var word string
		if err := json.Unmarshal(text, &word); err != nil {
			return err
		}
		list = []string{word}
	}
	*w = list
	return nil
}

type inner struct {
	K string `json:"k"`
	N int64  `json:"n"`
}

type shape struct {
	Task  string
	Flag  bool              `json:"flag"`
	Inner inner             `json:"inner"`
	Maybe *inner            `json:"maybe"`
	List  []string          `json:"list"`
	Items []inner           `json:"items"`
	Map   map[string]string `json:"map"`
	Set   map[string]struct{}
	Words Words `json:"words"`
	Deep  *shape
}

type config struct {
	Created      *string
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	Config       *struct {
		User         string
		Env          []string
		Entrypoint   Words
		Cmd          Words
		WorkingDir   string
		Volumes      map[string]struct{}
		ExposedPorts map[string]struct{}
		Labels       map[string]string
		StopSignal   string
	} `json:"config"`
	RootFS *struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []struct {
		Created    *string `json:"created"`
		CreatedBy  string  `json:"created_by"`
		Comment    string  `json:"comment"`
		EmptyLayer bool    `json:"empty_layer"`
	} `json:"history"`
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
	Platform    *struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	} `json:"platform"`
}

type manifest struct {
	SchemaVersion int64        `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	ArtifactType  string       `json:"artifactType"`
	Config        *descriptor  `json:"config"`
	Layers        []descriptor `json:"layers"`
	Manifests     []descriptor `json:"manifests"`
}

var digest = regexp.MustCompile("^sha256:[0-9a-f]{64}$")

func text(s string) string { return hex.EncodeToString([]byte(s)) }

func optional(s *string) string {
	if s == nil {
		return "-"
	}
	return text(*s)
}

func texts(list []string) string {
	var out []string
	for _, s := range list {
		out = append(out, text(s))
	}
	return "[" + strings.Join(out, ",") + "]"
}

func pairs(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, text(k)+":"+text(v))
	}
	sort.Strings(out)
	return "{" + strings.Join(out, ",") + "}"
}

func keys(m map[string]struct{}) string {
	var out []string
	for k := range m {
		out = append(out, text(k))
	}
	sort.Strings(out)
	return "{" + strings.Join(out, ",") + "}"
}

func (s *shape) said() string {
	if s == nil {
		return "-"
	}
	one := func(i inner) string { return fmt.Sprintf("%s:%d", text(i.K), i.N) }
	maybe := "-"
	if s.Maybe != nil {
		maybe = one(*s.Maybe)
	}
	var items []string
	for _, i := range s.Items {
		items = append(items, one(i))
	}
	return fmt.Sprintf("%s %t %s %s %s [%s] %s %s %s (%s)", text(s.Task), s.Flag, one(s.Inner), maybe, texts(s.List), strings.Join(items, ","),
		pairs(s.Map), keys(s.Set), texts(s.Words), s.Deep.said())
}

func (c *config) said() string {
	os, architecture := c.OS, c.Architecture
	if os == "" {
		os = "linux"
	}
	if architecture == "" {
		architecture = runtime.GOARCH
	}
	out := fmt.Sprintf("%s %s %s %s", optional(c.Created), text(os), text(architecture), text(c.Variant))
	if c.Config == nil {
		out += "  [] [] []  {} {} {} "
	} else {
		r := c.Config
		out += fmt.Sprintf(" %s %s %s %s %s %s %s %s %s", text(r.User), texts(r.Env), texts(r.Entrypoint), texts(r.Cmd), text(r.WorkingDir),
			keys(r.Volumes), keys(r.ExposedPorts), pairs(r.Labels), text(r.StopSignal))
	}
	if c.RootFS == nil {
		out += " []"
	} else {
		out += " " + texts(c.RootFS.DiffIDs)
	}
	for _, h := range c.History {
		out += fmt.Sprintf(" %s:%s:%s:%t", optional(h.Created), text(h.CreatedBy), text(h.Comment), h.EmptyLayer)
	}
	return out
}

// An impossible size counts as none.
func blob(d descriptor) string {
	if d.Size < 0 {
		d.Size = 0
	}
	return fmt.Sprintf("%s,%s,%d", text(d.MediaType), text(d.Digest), d.Size)
}

func (m *manifest) said() string {
	if m.Manifests == nil && !strings.Contains(m.MediaType, "index") {
		var d descriptor
		if m.Config != nil {
			d = *m.Config
		}
		out := "manifest " + blob(d)
		for _, l := range m.Layers {
			out += " " + blob(l)
		}
		return out
	}
	out := "index"
	for _, e := range m.Manifests {
		// A useless entry is no reason to reject the others.
		if !digest.MatchString(e.Digest) {
			continue
		}
		out += " " + blob(e) + "," + pairs(e.Annotations)
		if p := e.Platform; p != nil && p.OS+p.Architecture != "" {
			out += "," + text(p.OS) + "/" + text(p.Architecture) + "/" + text(p.Variant)
		}
	}
	return out
}

func main() {
	in, out := bufio.NewReaderSize(os.Stdin, 1<<20), bufio.NewWriter(os.Stdout)
	defer out.Flush()
	var head [5]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		document := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(in, document); err != nil {
			panic(err)
		}
		var into interface{ said() string }
		switch head[0] {
		case 's':
			into = &shape{}
		case 'c':
			into = &config{}
		case 'm':
			into = &manifest{}
		}
		if json.Unmarshal(document, into) != nil {
			fmt.Fprintln(out, "error")
		} else {
			fmt.Fprintln(out, into.said())
		}
	}
}
