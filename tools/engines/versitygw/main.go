// Command versitygw is the published Versity S3 gateway over a folder of this machine, built from
// the pinned modules of go.mod and go.sum. Of its many options there are those that a test needs.
// It acks what the kernel's page cache has: it survives its own death, not its machine's.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

func main() {
	address := flag.String("address", "127.0.0.1:7070", "where it listens, HOST:PORT")
	data := flag.String("data", "", "the folder in which buckets lie")
	certificate := flag.String("cert-file", "", "PEM; without it no TLS")
	key := flag.String("key-file", "", "PEM, of that certificate")
	credentials := flag.String("credentials-file", "", "of its one user, as AWS's tools have it")
	region := flag.String("region", "us-east-1", "that requests are signed for")
	flag.Parse()
	if err := serve(*address, *data, *certificate, *key, *credentials, *region); err != nil {
		log.Fatal(err)
	}
}

// user returns the access key and the secret key that a file has.
func user(file string) (string, string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", "", err
	}
	found := map[string]string{}
	for _, line := range strings.Split(string(text), "\n") {
		name, value, _ := strings.Cut(line, "=")
		found[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return found["aws_access_key_id"], found["aws_secret_access_key"], nil
}

func serve(address, data, certificate, key, credentials, region string) error {
	access, secret, err := user(credentials)
	if err != nil {
		return err
	}
	folder, err := filepath.Abs(data)
	if err != nil {
		return err
	}
	objects, notes := filepath.Join(folder, "objects"), filepath.Join(folder, "meta")
	for _, made := range []string{objects, notes} {
		if err := os.MkdirAll(made, 0o700); err != nil {
			return err
		}
	}
	// Beside the objects, not in their attributes: not every file system has those.
	storer, err := meta.NewSideCar(notes)
	if err != nil {
		return err
	}
	options := posix.PosixOpts{SideCarDir: notes, Concurrency: 64}
	options.SetNewDirPerm(0o700)
	options.SetNewFilePerm(0o600)
	backend, err := posix.New(objects, storer, options)
	if err != nil {
		return err
	}
	ends, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return embedgw.RunVersityGW(ends, backend, &embedgw.Config{
		RootUserAccess:    access,
		RootUserSecret:    secret,
		Region:            region,
		Ports:             []string{address},
		CertFile:          certificate,
		KeyFile:           key,
		MaxConnections:    1024,
		MaxRequests:       512,
		MultipartMaxParts: 10000,
		KeepAlive:         true,
		DisableACLs:       true,
		Quiet:             true,
		HealthPath:        "/health",
	})
}
