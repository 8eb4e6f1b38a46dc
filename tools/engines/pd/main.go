// Command pd is the published Placement Driver of TiKV, built from the pinned modules of go.mod and
// go.sum, without its dashboard: the server alone, with the flags that a single member needs.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/pingcap/log"
	"github.com/spf13/cobra"
	"github.com/tikv/pd/pkg/schedule/schedulers"
	"github.com/tikv/pd/pkg/utils/logutil"
	"github.com/tikv/pd/pkg/versioninfo"
	"github.com/tikv/pd/server"
	"github.com/tikv/pd/server/api"
	"github.com/tikv/pd/server/apiv2"
	"github.com/tikv/pd/server/config"
	"go.uber.org/zap"

	// Its API asks whether the services that could stand apart do; they do not.
	_ "github.com/tikv/pd/pkg/mcs/scheduling/server/install"
	_ "github.com/tikv/pd/pkg/mcs/tso/server/install"
)

func main() {
	command := &cobra.Command{Use: "pd", Run: run, SilenceUsage: true}
	flags := command.Flags()
	flags.BoolP("version", "V", false, "print version information and exit")
	flags.Bool("force-new-cluster", false, "make one member the whole cluster")
	for name, meaning := range map[string]string{
		"config":                "configuration file",
		"name":                  "name of this member",
		"data-dir":              "data folder",
		"client-urls":           "where clients are served",
		"advertise-client-urls": "the same, as others see it",
		"peer-urls":             "where other members are served",
		"advertise-peer-urls":   "the same, as others see it",
		"initial-cluster":       "all members, NAME=URL",
		"log-file":              "log file; default standard error",
		"log-level":             "debug, info, warn, error or fatal",
		"cacert":                "trusted CAs, PEM",
		"cert":                  "certificate, PEM",
		"key":                   "its key, PEM",
	} {
		flags.String(name, "", meaning)
	}
	if command.Execute() != nil {
		os.Exit(1)
	}
}

func run(command *cobra.Command, _ []string) {
	flags := command.Flags()
	// The publisher's own build sets it by a linker flag.
	versioninfo.PDReleaseVersion = release
	if asked, _ := flags.GetBool("version"); asked {
		versioninfo.Print()
		return
	}
	schedulers.Register()
	settings := config.NewConfig()
	if err := settings.Parse(flags); err != nil {
		log.Fatal("the configuration cannot be used", zap.Error(err))
	}
	if err := logutil.SetupLogger(
		settings.Log, &settings.Logger, &settings.LogProps, settings.Security.RedactInfoLog,
	); err != nil {
		log.Fatal("the log cannot be set up", zap.Error(err))
	}
	log.ReplaceGlobals(settings.Logger, settings.LogProps)
	defer func() { _ = log.Sync() }()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	pd, err := server.CreateServer(ctx, settings, nil, api.NewHandler, apiv2.NewV2Handler)
	if err != nil {
		log.Fatal("the server cannot be made", zap.Error(err))
	}
	if err := pd.Run(); err != nil {
		log.Fatal("the server cannot run", zap.Error(err))
	}
	<-ctx.Done()
	pd.Close()
}

// The sources are of master in April 2024, after the branch of 8.1 was made.
const release = "v8.1.0-alpha"
