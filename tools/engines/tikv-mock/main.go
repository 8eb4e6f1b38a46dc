// Command tikv-mock is a TiKV-protocol mock, not TiKV: it answers the calls of transactional clients
// from the in-process store that client-go is tested with (mocktikv), and is the one store of a real
// PD. It has no Raft, no replicas and no durability to speak of; docs/engines.md lists where else it
// departs from TiKV. With -data a killed mock finds its rows again.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os/signal"
	"path"
	"reflect"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/metapb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/tikv/client-go/v2/testutils"
	"github.com/tikv/client-go/v2/tikvrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	version      = "8.1.0" // the TiKV whose features PD is to expect
	callTimeout  = 10 * time.Second
	pdTimeout    = 3 * time.Second
	beatInterval = time.Second
	messageBytes = 16 << 20
)

func main() {
	pd := flag.String("pd", "127.0.0.1:2379", "address of PD")
	address := flag.String("addr", "127.0.0.1:20160", "where clients are served, and what PD tells them")
	control := flag.String("control", "", "where tests split regions and inject faults, over HTTP; empty: nowhere")
	data := flag.String("data", "", "folder of the rows; empty: in memory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *pd, *address, *control, *data); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, pd, address, control, data string) error {
	client, cluster, _, err := testutils.NewMockTiKV(data, nil)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	member, err := join(ctx, pd, address, cluster)
	if err != nil {
		return err
	}
	faults := &faults{set: map[string]*fault{}}
	if control != "" {
		if err := serveControl(control, member, faults); err != nil {
			return err
		}
	}
	go member.beatUntil(ctx)
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(messageBytes), grpc.MaxSendMsgSize(messageBytes),
		grpc.UnaryInterceptor(faults.intercept),
	)
	tikvpb.RegisterTikvServer(server, &store{client: client, address: address})
	go func() {
		<-ctx.Done()
		server.Stop()
	}()
	log.Printf("TiKV-protocol mock: store %d of cluster %d serves at %s", member.storeID, member.header.ClusterId, address)
	return server.Serve(listener)
}

// ------------------------------------------------------------------------------------ with PD

// member is the store as PD knows it. Regions change under its lock only.
type member struct {
	pd      pdpb.PDClient
	header  *pdpb.RequestHeader
	cluster *testutils.MockCluster
	address string
	storeID uint64
	started time.Time

	lock   sync.Mutex
	stream pdpb.PD_RegionHeartbeatClient
	untold map[uint64]time.Time // by region: when PD is to hear of it
}

// join takes the place that PD has for a store at this address, or makes the cluster.
func join(ctx context.Context, pd, address string, cluster *testutils.MockCluster) (*member, error) {
	connection, err := grpc.Dial(pd, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	m := &member{
		pd: pdpb.NewPDClient(connection), cluster: cluster, address: address, started: time.Now(),
		untold: map[uint64]time.Time{},
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	members, err := m.pd.GetMembers(ctx, &pdpb.GetMembersRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	m.header = &pdpb.RequestHeader{ClusterId: members.Header.ClusterId}
	there, err := m.pd.IsBootstrapped(ctx, &pdpb.IsBootstrappedRequest{Header: m.header})
	if err != nil {
		return nil, err
	}
	if there.GetBootstrapped() {
		err = m.adopt(ctx)
	} else {
		err = m.bootstrap(ctx)
	}
	if err != nil {
		return nil, err
	}
	return m, m.beat(ctx)
}

func (m *member) bootstrap(ctx context.Context) error {
	ids := make([]uint64, 3)
	for i := range ids {
		id, err := m.newID(ctx)
		if err != nil {
			return err
		}
		ids[i] = id
	}
	m.storeID = ids[0]
	region := &metapb.Region{
		Id:          ids[1],
		RegionEpoch: &metapb.RegionEpoch{ConfVer: 1, Version: 1},
		Peers:       []*metapb.Peer{{Id: ids[2], StoreId: m.storeID}},
	}
	m.cluster.AddStore(m.storeID, m.address)
	m.add(region)
	answer, err := m.pd.Bootstrap(ctx, &pdpb.BootstrapRequest{Header: m.header, Store: m.store(), Region: region})
	if err == nil && answer.GetHeader().GetError() != nil {
		err = errors.New(answer.GetHeader().GetError().String())
	}
	return err
}

// adopt goes on with the regions that PD has heard of last.
func (m *member) adopt(ctx context.Context) error {
	stores, err := m.pd.GetAllStores(ctx, &pdpb.GetAllStoresRequest{Header: m.header})
	if err != nil {
		return err
	}
	for _, store := range stores.GetStores() {
		if store.GetAddress() == m.address {
			m.storeID = store.GetId()
		}
	}
	if m.storeID == 0 {
		return errors.New("PD has stores already, and none is at " + m.address + ": this mock is a cluster's only one")
	}
	m.cluster.AddStore(m.storeID, m.address)
	regions, err := m.pd.ScanRegions(ctx, &pdpb.ScanRegionsRequest{Header: m.header})
	if err != nil {
		return err
	}
	for _, region := range regions.GetRegionMetas() {
		m.add(region)
	}
	if len(regions.GetRegionMetas()) == 0 {
		return errors.New("PD has forgotten the regions: wipe it, and the data of this mock")
	}
	_, err = m.pd.PutStore(ctx, &pdpb.PutStoreRequest{Header: m.header, Store: m.store()})
	return err
}

func (m *member) add(region *metapb.Region) {
	peer := region.Peers[0].Id
	m.cluster.Bootstrap(region.Id, []uint64{m.storeID}, []uint64{peer}, peer)
	for _, there := range m.cluster.GetAllRegions() {
		if there.Meta.Id == region.Id {
			there.Meta.StartKey, there.Meta.EndKey = region.StartKey, region.EndKey
			there.Meta.RegionEpoch = region.RegionEpoch
		}
	}
}

func (m *member) store() *metapb.Store {
	return &metapb.Store{Id: m.storeID, Address: m.address, Version: version}
}

func (m *member) newID(ctx context.Context) (uint64, error) {
	answer, err := m.pd.AllocID(ctx, &pdpb.AllocIDRequest{Header: m.header})
	return answer.GetId(), err
}

func (m *member) beatUntil(ctx context.Context) {
	for ticks := time.Tick(beatInterval); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
			if err := m.beat(ctx); err != nil {
				log.Printf("PD does not hear this store: %v", err)
			}
		}
	}
}

// beat tells PD of the store and its regions; a broken stream is made anew the next time.
func (m *member) beat(ctx context.Context) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	err := m.beatLocked(ctx)
	if err != nil {
		m.stream = nil
	}
	return err
}

func (m *member) beatLocked(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, pdTimeout)
	defer cancel()
	regions := m.cluster.GetAllRegions()
	const room = 1 << 40
	_, err := m.pd.StoreHeartbeat(limited, &pdpb.StoreHeartbeatRequest{Header: m.header, Stats: &pdpb.StoreStats{
		StoreId: m.storeID, RegionCount: uint32(len(regions)), Capacity: room, Available: room / 2,
		StartTime: uint32(m.started.Unix()),
	}})
	if err != nil {
		return err
	}
	if m.stream == nil {
		// It lives as long as the process, not as long as this beat.
		stream, err := m.pd.RegionHeartbeat(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		m.stream = stream
		go m.hear(stream)
	}
	for _, region := range regions {
		meta := region.Meta
		if time.Now().Before(m.untold[meta.Id]) {
			continue
		}
		if err := m.stream.Send(&pdpb.RegionHeartbeatRequest{
			Header: m.header, Region: meta, Leader: meta.Peers[0], Term: 6, ApproximateSize: 1,
		}); err != nil {
			return err
		}
	}
	return nil
}

// hear takes what PD says of regions. With one store it has nothing for them to do; that it does not
// take a beat is told here only, and the next one then goes over another stream.
func (m *member) hear(stream pdpb.PD_RegionHeartbeatClient) {
	for {
		answer, err := stream.Recv()
		if err == nil && answer.GetHeader().GetError() != nil {
			err = errors.New(answer.GetHeader().GetError().String())
		}
		if err != nil {
			log.Printf("PD does not hear of the regions: %v", err)
			m.lock.Lock()
			if m.stream == stream {
				m.stream = nil
			}
			m.lock.Unlock()
			return
		}
	}
}

// split cuts the region of this key in two; the right one begins with the key, and PD hears of it
// so much later than of the left one, whose leader may be on another store.
func (m *member) split(ctx context.Context, key []byte, late time.Duration) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	encoded := encodeBytes(key)
	region, _, _ := m.cluster.GetRegionByKey(encoded)
	id, err := m.newID(ctx)
	if err != nil {
		return err
	}
	peer, err := m.newID(ctx)
	if err != nil {
		return err
	}
	m.cluster.SplitRaw(region.Id, id, encoded, []uint64{peer}, peer)
	left, _ := m.cluster.GetRegion(region.Id)
	for _, there := range m.cluster.GetAllRegions() {
		if there.Meta.Id == id { // as in TiKV; the mock begins at 0, which PD takes for a stale region
			there.Meta.RegionEpoch = left.RegionEpoch
		}
	}
	if late > 0 {
		m.untold[id] = time.Now().Add(late)
		time.AfterFunc(late, func() {
			if err := m.beat(context.Background()); err != nil {
				log.Printf("PD does not hear of region %d: %v", id, err)
			}
		})
	}
	return m.beatLocked(ctx)
}

// encodeBytes is the form of transactional keys in a region's bounds: groups of eight, each with a
// byte that tells how many count.
func encodeBytes(key []byte) []byte {
	var out []byte
	for at := 0; at <= len(key); at += 8 {
		group := make([]byte, 8)
		count := copy(group, key[at:])
		out = append(append(out, group...), byte(0xff-(8-count)))
	}
	return out
}

// ------------------------------------------------------------------------------ injected faults

// fault is what happens to all calls of a method that come from one transaction, the next one to
// make such a call. "lost": the call is not done, "mute": it is done; neither is answered before the
// caller gives up. "late": it is done after a delay.
type fault struct {
	kind  string
	delay time.Duration
	start uint64 // of the transaction; 0: not hit yet
}

type faults struct {
	lock sync.Mutex
	set  map[string]*fault
}

func (f *faults) inject(method string, next fault) {
	f.lock.Lock()
	defer f.lock.Unlock()
	f.set[method] = &next
}

func (f *faults) hits(method string, request interface{}) (fault, bool) {
	about, fits := request.(interface{ GetStartVersion() uint64 })
	if !fits {
		return fault{}, false
	}
	f.lock.Lock()
	defer f.lock.Unlock()
	next := f.set[method]
	if next == nil {
		return fault{}, false
	}
	if next.start == 0 {
		next.start = about.GetStartVersion()
	}
	return *next, next.start == about.GetStartVersion()
}

func (f *faults) intercept(
	ctx context.Context, request interface{}, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler,
) (interface{}, error) {
	next, hit := f.hits(path.Base(info.FullMethod), request)
	if !hit {
		return handle(ctx, request)
	}
	// Like TiKV, which does not stop a proposal because its client has gone.
	detached := context.WithoutCancel(ctx)
	switch next.kind {
	case "late":
		time.Sleep(next.delay)
		return handle(detached, request)
	case "mute":
		if _, err := handle(detached, request); err != nil {
			return nil, err
		}
	}
	<-ctx.Done()
	return nil, status.FromContextError(ctx.Err()).Err()
}

func serveControl(address string, m *member, f *faults) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /split", func(w http.ResponseWriter, r *http.Request) {
		key, err := hex.DecodeString(r.FormValue("key"))
		late := 0
		if err == nil {
			late, err = strconv.Atoi(r.FormValue("late_ms"))
		}
		if err == nil {
			err = m.split(r.Context(), key, time.Duration(late)*time.Millisecond)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		delay, err := strconv.Atoi(r.FormValue("delay_ms"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.inject(r.FormValue("method"), fault{kind: r.FormValue("kind"), delay: time.Duration(delay) * time.Millisecond})
	})
	mux.HandleFunc("GET /regions", func(w http.ResponseWriter, _ *http.Request) {
		m.lock.Lock()
		defer m.lock.Unlock()
		starts := []string{}
		for _, region := range m.cluster.GetAllRegions() {
			starts = append(starts, hex.EncodeToString(region.Meta.StartKey))
		}
		sort.Strings(starts)
		_ = json.NewEncoder(w).Encode(starts)
	})
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() { log.Print(http.Serve(listener, mux)) }()
	return nil
}

// ------------------------------------------------------------------------------------ the store

type store struct {
	tikvpb.UnimplementedTikvServer
	client  *testutils.MockClient
	address string
}

// call hands a request to the mock. Where that panics (a key outside of the region, since it was
// split meanwhile), the client is told to look the region up again, as TiKV would tell it.
func call[R any](
	ctx context.Context, s *store, kind tikvrpc.CmdType, request interface{}, about *kvrpcpb.Context,
) (response *R, err error) {
	defer func() {
		if what := recover(); what != nil {
			log.Printf("%v: %v", kind, what)
			response, err = new(R), nil
			field := reflect.ValueOf(response).Elem().FieldByName("RegionError")
			field.Set(reflect.ValueOf(&errorpb.Error{
				Message:        "region not found",
				RegionNotFound: &errorpb.RegionNotFound{RegionId: about.GetRegionId()},
			}))
		}
	}()
	if about == nil {
		about = &kvrpcpb.Context{}
	}
	answer, err := s.client.SendRequest(ctx, s.address, tikvrpc.NewRequest(kind, request, *about), callTimeout)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	response, fits := answer.Resp.(*R)
	if !fits {
		return nil, status.Errorf(codes.Internal, "%v was answered with %T", kind, answer.Resp)
	}
	return response, nil
}

func (s *store) KvGet(ctx context.Context, r *kvrpcpb.GetRequest) (*kvrpcpb.GetResponse, error) {
	response, err := call[kvrpcpb.GetResponse](ctx, s, tikvrpc.CmdGet, r, r.Context)
	if err == nil && response.RegionError == nil && response.Error == nil && len(response.Value) == 0 {
		response.NotFound = true // as TiKV says it; the mock leaves it out
	}
	return response, err
}

func (s *store) KvBatchGet(ctx context.Context, r *kvrpcpb.BatchGetRequest) (*kvrpcpb.BatchGetResponse, error) {
	return call[kvrpcpb.BatchGetResponse](ctx, s, tikvrpc.CmdBatchGet, r, r.Context)
}

func (s *store) KvScan(ctx context.Context, r *kvrpcpb.ScanRequest) (*kvrpcpb.ScanResponse, error) {
	return call[kvrpcpb.ScanResponse](ctx, s, tikvrpc.CmdScan, r, r.Context)
}

func (s *store) KvPrewrite(ctx context.Context, r *kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error) {
	return call[kvrpcpb.PrewriteResponse](ctx, s, tikvrpc.CmdPrewrite, r, r.Context)
}

func (s *store) KvCommit(ctx context.Context, r *kvrpcpb.CommitRequest) (*kvrpcpb.CommitResponse, error) {
	return call[kvrpcpb.CommitResponse](ctx, s, tikvrpc.CmdCommit, r, r.Context)
}

func (s *store) KvBatchRollback(
	ctx context.Context, r *kvrpcpb.BatchRollbackRequest,
) (*kvrpcpb.BatchRollbackResponse, error) {
	return call[kvrpcpb.BatchRollbackResponse](ctx, s, tikvrpc.CmdBatchRollback, r, r.Context)
}

func (s *store) KvCleanup(ctx context.Context, r *kvrpcpb.CleanupRequest) (*kvrpcpb.CleanupResponse, error) {
	return call[kvrpcpb.CleanupResponse](ctx, s, tikvrpc.CmdCleanup, r, r.Context)
}

func (s *store) KvCheckTxnStatus(
	ctx context.Context, r *kvrpcpb.CheckTxnStatusRequest,
) (*kvrpcpb.CheckTxnStatusResponse, error) {
	return call[kvrpcpb.CheckTxnStatusResponse](ctx, s, tikvrpc.CmdCheckTxnStatus, r, r.Context)
}

func (s *store) KvTxnHeartBeat(
	ctx context.Context, r *kvrpcpb.TxnHeartBeatRequest,
) (*kvrpcpb.TxnHeartBeatResponse, error) {
	return call[kvrpcpb.TxnHeartBeatResponse](ctx, s, tikvrpc.CmdTxnHeartBeat, r, r.Context)
}

func (s *store) KvScanLock(ctx context.Context, r *kvrpcpb.ScanLockRequest) (*kvrpcpb.ScanLockResponse, error) {
	return call[kvrpcpb.ScanLockResponse](ctx, s, tikvrpc.CmdScanLock, r, r.Context)
}

func (s *store) KvResolveLock(
	ctx context.Context, r *kvrpcpb.ResolveLockRequest,
) (*kvrpcpb.ResolveLockResponse, error) {
	return call[kvrpcpb.ResolveLockResponse](ctx, s, tikvrpc.CmdResolveLock, r, r.Context)
}

func (s *store) KvGC(ctx context.Context, r *kvrpcpb.GCRequest) (*kvrpcpb.GCResponse, error) {
	return call[kvrpcpb.GCResponse](ctx, s, tikvrpc.CmdGC, r, r.Context)
}
