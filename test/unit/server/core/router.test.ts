import { describe, expect, test } from "vitest";
import { requestAttributes } from "../../../../agent/server/attributes.ts";
import { cleanPath, decodePercent, parseTarget } from "../../../../agent/server/path.ts";
import { requestLabels } from "../../../../agent/server/request-metrics.ts";
import { matchRoute } from "../../../../agent/server/router.ts";
import { kubeletRoutes, readOnlyRoutes, type RouteSwitches } from "../../../../agent/server/routes.ts";
import { namingHandlers } from "./support.ts";

const handlers = namingHandlers();
const allOn: RouteSwitches = {
  enableDebuggingHandlers: true,
  enableProfilingHandler: true,
  enableDebugFlagsHandler: true,
  enableSystemLogHandler: true,
  checkpoint: true,
  statusz: true,
  flagz: true,
};
const names = new Map<unknown, string>([
  ...Object.entries(handlers).map(([name, handler]) => [handler, name] as const),
  ...Object.entries(handlers.metrics).map(([name, handler]) => [handler, `metrics.${name}`] as const),
  ...(["exec", "attach", "portForward"] as const).map((name) => [handlers[name].handle, name] as const),
  ...[...handlers.healthChecks].map(([name, handler]) => [handler, `healthz.${name}`] as const),
]);

/** What comes of a request in short: `handler {params}`, or `public` or `private` with the status. */
function route(method: string, url: string, routes = kubeletRoutes(handlers, allOn), accept?: string): string {
  const match = matchRoute(routes, { method, url, accept });
  if (match.kind !== "serve") {
    const { status, headers } = match.error;
    const visibility = match.kind === "answer" ? "public" : "private";
    return [visibility, status, headers["Location"], headers["Allow"]].filter((part) => part !== undefined).join(" ");
  }
  const params = Object.keys(match.params).length === 0 ? "" : ` ${JSON.stringify(match.params)}`;
  return `${names.get(match.handler) ?? "disabled"}${params}${match.upgrade === undefined ? "" : " or upgrade"}`;
}

const abc = `{"namespace":"a","pod":"b","container":"c"}`;
const cases: [request: string, want: string][] = [
  // Ordinary ones
  ["GET /pods", "pods"],
  ["GET /pods/", "pods"],
  ["GET /pods?x=/a", "pods"],
  ["GET http://node:10250/pods", "pods"],
  ["GET /healthz", "healthz"],
  ["HEAD /healthz", "healthz"],
  ["GET /healthz/ping", "healthz.ping"],
  ["GET /stats/summary", "statsSummary"],
  ["POST /stats/summary", "statsSummary"],
  ["GET /metrics", "metrics.agent"],
  ["GET /metrics/cadvisor", "metrics.cadvisor"],
  ["DELETE /metrics/slis", "metrics.slis"],
  ["POST /run/a/b/c", `run ${abc}`],
  ["POST /run/a/b/u/c", `run {"namespace":"a","pod":"b","uid":"u","container":"c"}`],
  ["GET /exec/a/b/c", `exec ${abc} or upgrade`],
  ["POST /exec/a/b/c/", `exec ${abc} or upgrade`],
  ["POST /attach/a/b/c", `attach ${abc} or upgrade`],
  ["POST /portForward/a/b", `portForward {"namespace":"a","pod":"b"} or upgrade`],
  ["GET /portForward/a/b/u", `portForward {"namespace":"a","pod":"b","uid":"u"} or upgrade`],
  ["GET /containerLogs/a/b/c?follow=true", `containerLogs ${abc}`],
  ["GET /runningpods/", "runningPods"],
  ["POST /checkpoint/a/b/c", `checkpoint ${abc}`],
  ["GET /logs/", `nodeLogs {"path":""}`],
  ["GET /logs/a/b.log", `nodeLogs {"path":"a/b.log"}`],
  ["GET /logs/journal/", `nodeLogs {"path":"journal/"}`],
  ["GET /debug/pprof/", `pprof {"profile":""}`],
  ["GET /debug/pprof/heap?seconds=1", `pprof {"profile":"heap"}`],
  ["PUT /debug/flags/v", "verbosity"],
  ["GET /configz", "configz"],
  ["GET /statusz", "statusz"],
  ["GET /flagz", "flagz"],
  // No route: anybody may know
  ["GET /", "public 404"],
  ["GET /spec", "public 404"],
  ["GET /livez", "public 404"],
  ["GET /podsandmore", "public 404"],
  ["GET /metrics/", "public 404"],
  ["GET /metrics/x", "public 404"],
  ["GET /healthz/nothing", "public 404"],
  ["GET /configz/", "public 404"],
  ["GET /portforward/a/b", "public 404"],
  ["GET /debug", "public 404"],
  // Roots of subtrees without their slash
  ["GET /logs", "public 307 /logs/"],
  ["GET /logs?query=kubelet", "public 307 /logs/?query=kubelet"],
  ["GET /runningpods", "public 307 /runningpods/"],
  ["GET /stats", "public 307 /stats/"],
  ["POST /checkpoint", "public 307 /checkpoint/"],
  ["GET /debug/pprof", "public 307 /debug/pprof/"],
  // In a subtree, but no endpoint: only who may know
  ["GET /pods/a", "private 404"],
  ["GET /stats/", "private 404"],
  ["GET /stats/container", "private 404"],
  ["GET /exec", "private 404"],
  ["GET /exec/a/b", "private 404"],
  ["GET /exec/a/b/u/c/d", "private 404"],
  ["GET /runningpods/a", "private 404"],
  ["POST /pods", "private 405 GET"],
  ["HEAD /pods", "private 405 GET"],
  ["DELETE /exec/a/b/c", "private 405 GET, POST"],
  ["GET /checkpoint/a/b/c", "private 405 POST"],
  ["GET /run/a/b/c", "private 405 POST"],
  // Hostile
  ["GET //pods", "public 301 /pods"],
  ["GET /pods//", "public 301 /pods/"],
  ["GET /logs/../pods", "public 301 /pods"],
  ["GET /logs/../../../../etc/passwd", "public 301 /etc/passwd"],
  ["GET /logs/./a", "public 301 /logs/a"],
  ["GET //evil.example/..", "public 301 /"],
  ["GET //logs", "public 307 /logs/"],
  ["GET /\\evil.example/a/..", "public 301 /%5Cevil.example"],
  ["GET /logs/%2e%2e/%2e%2e/etc/passwd", `nodeLogs {"path":"../../etc/passwd"}`],
  ["GET /logs/..%2f..%2fetc%2fpasswd", `nodeLogs {"path":"../../etc/passwd"}`],
  ["GET /logs/a%00b", `nodeLogs {"path":"a\\u0000b"}`],
  ["GET /containerLogs/a/b%2fc/d", "private 404"],
  ["GET /containerLogs/a/%62/c", `containerLogs ${abc}`],
  ["GET /containerLogs/a/%252e/c", `containerLogs {"namespace":"a","pod":"%2e","container":"c"}`],
  ["GET /containerLogs/%2e%2e/%2e%2e/%2e%2e", `containerLogs {"namespace":"..","pod":"..","container":".."}`],
  ["GET /containerLogs/a/b/\xff", `containerLogs {"namespace":"a","pod":"b","container":"\ufffd"}`],
  ["GET /containerLogs/a/b/%ff", `containerLogs {"namespace":"a","pod":"b","container":"\ufffd"}`],
  ["GET /containerLogs/a/b/__proto__", `containerLogs {"namespace":"a","pod":"b","container":"__proto__"}`],
  ["GET /%70ods", "pods"],
  ["GET /metrics%2f..%2fexec/a/b/c", "public 404"],
  ["GET /%2fpods", "public 404"],
  ["GET /pods%2f", "public 404"],
  ["GET /pods%", "public 400"],
  ["GET /pods%zz", "public 400"],
  ["GET pods", "public 400"],
  ["GET *", "public 400"],
  ["GET /po\0ds", "public 400"],
  ["GET /a\r\nX-Evil:1//", "public 400"],
  ["GET ", "public 400"],
  [`GET /${"a/".repeat(5_000)}`, "public 404"],
  [`GET /exec${"/a".repeat(5_000)}`, "private 404"],
  [`GET /${"a/".repeat(50_000)}`, "public 414"],
  [`GET /configz?${"a/".repeat(500_000)}`, "configz"],
];

describe("matchRoute", () => {
  for (const [request, want] of cases) {
    test(`${JSON.stringify(request.slice(0, 60))} is ${want}`, () => {
      const cut = request.indexOf(" ");
      expect(route(request.slice(0, cut), request.slice(cut + 1))).toBe(want);
    });
  }

  for (const [accept, want] of [
    [undefined, "pods"],
    ["", "pods"],
    ["*/*", "pods"],
    ["text/html, application/json;q=0.1", "pods"],
    ["application/vnd.kubernetes.protobuf", "private 406"],
    ["text/*", "private 406"],
  ] as const) {
    test(`/pods for a client that accepts ${accept} is ${want}`, () => {
      expect(route("GET", "/pods", undefined, accept)).toBe(want);
    });
  }

  test("switches turn routes into refusals", async () => {
    const message = async (url: string, routes: ReturnType<typeof kubeletRoutes>) => {
      const match = matchRoute(routes, { method: "GET", url, accept: undefined });
      if (match.kind !== "serve") return match.error.status;
      const call = async () => match.handler({} as Parameters<typeof match.handler>[0]);
      return call().catch((err: unknown) => String(err));
    };
    const debuggingOff = kubeletRoutes(handlers, { ...allOn, enableDebuggingHandlers: false });
    for (const routes of [debuggingOff, readOnlyRoutes(handlers)]) {
      for (const root of [
        "run",
        "exec",
        "attach",
        "portForward",
        "containerLogs",
        "runningpods",
        "debug/pprof",
        "logs",
      ]) {
        expect(await message(`/${root}/a/b`, routes)).toMatch(/Debug endpoints are disabled/);
      }
      for (const gone of ["/configz", "/statusz", "/flagz", "/debug/flags/v", "/checkpoint/a/b/c"]) {
        expect(await message(gone, routes)).toBe(404);
      }
    }
    const off = kubeletRoutes(handlers, {
      ...allOn,
      enableProfilingHandler: false,
      enableDebugFlagsHandler: false,
      enableSystemLogHandler: false,
      checkpoint: false,
      statusz: false,
      flagz: false,
    });
    for (const gone of ["/statusz", "/flagz", "/checkpoint/a/b/c"]) expect(await message(gone, off)).toBe(404);
    expect(await message("/logs/a", off)).toMatch(/logs endpoint is disabled/);
    expect(await message("/debug/pprof/heap", off)).toMatch(/profiling endpoint is disabled/);
    expect(await message("/debug/flags/v", off)).toMatch(/flags endpoint is disabled/);
  });
});

describe("requestAttributes", () => {
  const table: [request: string, want: string][] = [
    ["GET /pods", "get pods,proxy"],
    ["GET /pods/", "get pods,proxy"],
    ["GET /runningpods/", "get pods,proxy"],
    ["GET /healthz", "get healthz,proxy"],
    ["GET /healthz/ping", "get healthz,proxy"],
    ["GET /healthzz", "get proxy"],
    ["GET /configz", "get configz,proxy"],
    ["POST /stats/summary", "create stats"],
    ["GET /metrics", "get metrics"],
    ["DELETE /metrics/slis", "delete metrics"],
    ["GET /logs/syslog", "get log"],
    ["GET /logs/../exec/a/b/c", "get log"],
    ["POST /checkpoint/a/b/c", "create checkpoint"],
    ["GET /statusz", "get statusz"],
    ["GET /flagz", "get configz"],
    ["GET /exec/a/b/c", "get proxy"],
    ["POST /exec/a/b/c", "create proxy"],
    ["POST /run/a/b/c", "create proxy"],
    ["GET /containerLogs/a/b/c", "get proxy"],
    ["PUT /debug/flags/v", "update proxy"],
    ["PATCH /pods", "patch pods,proxy"],
    ["HEAD /pods", " pods,proxy"],
    ["OPTIONS /exec", " proxy"],
    ["get /pods", " pods,proxy"],
  ];
  for (const [request, want] of table) {
    test(`${request} is "${want}"`, () => {
      const [method = "", path = ""] = request.split(" ");
      const { verb, subresources } = requestAttributes(method, path);
      expect(`${verb} ${subresources.join(",")}`).toBe(want);
    });
  }
});

test("percent-encoding is decoded once, byte by byte, whatever comes", () => {
  expect(decodePercent("a%20b%C3%A4%2f%25%zz%4")).toBe("a bä/%%zz%4");
  expect(decodePercent("\xc3\xa4")).toBe("ä");
  expect(decodePercent("")).toBe("");
});

test("paths are cleaned as Go's path.Clean does, keeping a slash at the end", () => {
  for (const [path, want] of [
    ["/", "/"],
    ["/a/b/", "/a/b/"],
    ["/a/./b", "/a/b"],
    ["/a/.", "/a"],
    ["/a/..", "/"],
    ["/a/../", "/"],
    ["/../../a", "/a"],
    ["//", "/"],
    ["/a//b///c", "/a/b/c"],
    ["/a/%2e%2e/b", "/a/%2e%2e/b"],
    ["/...", "/..."],
  ] as const) {
    expect([path, cleanPath(path)]).toEqual([path, want]);
  }
});

test("no path keeps the event loop busy", () => {
  const bytes = 1_000_000;
  const paths = [
    `/${"a".repeat(bytes / 2)}${"/b/..".repeat(bytes / 10)}`,
    `${"/a".repeat(bytes / 4)}${"/..".repeat(bytes / 6)}`,
    "/".repeat(bytes),
    "/%2e".repeat(bytes / 4),
    "/%".repeat(bytes / 2),
    `/pods?${"a=%41&".repeat(bytes / 6)}`,
    `/healthz#${"?".repeat(bytes)}`,
  ];
  for (const url of paths) {
    const start = performance.now();
    route("GET", url);
    requestLabels("GET", url, "readwrite");
    cleanPath(url);
    decodePercent(url);
    expect([url.slice(0, 20), performance.now() - start < 500]).toEqual([url.slice(0, 20), true]);
  }
});

test("targets are taken apart at the first question mark", () => {
  expect(parseTarget("/a?b?c")).toEqual({ escapedPath: "/a", query: "b?c" });
  expect(parseTarget("https://h?x=/y")).toEqual({ escapedPath: "/", query: "x=/y" });
  expect(parseTarget("ftp://h/a")).toBeUndefined();
});

test("labels of requests have few values", () => {
  const label = (method: string, url: string) => {
    const { method: verb, path, long_running } = requestLabels(method, url, "readonly");
    return `${verb} ${path} ${long_running}`;
  };
  expect(label("GET", "/exec/a/b/c?command=rm")).toBe("GET exec true");
  expect(label("GET", "/portForward/a/b")).toBe("GET portForward false");
  expect(label("GET", "/debug/pprof/heap")).toBe("GET debug true");
  expect(label("GET", "/metrics/probes")).toBe("GET metrics/probes false");
  expect(label("GET", "/metrics/slis")).toBe("GET other false");
  expect(label("GET", "/metrics?x=1")).toBe("GET metrics false");
  expect(label("BREW", "/coffee")).toBe("other other false");
  expect(label("GET", "")).toBe("GET other false");
});
