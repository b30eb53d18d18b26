import { afterEach } from "vitest";
import {
  type AgentServerOptions,
  fakeRuntimeCalls,
  servedPods,
  startAgentServer,
  webPod,
} from "../../../support/streaming/agent-server.ts";
import { type FakeRuntimeOptions, startFakeRuntime } from "../../../support/streaming/fake-runtime.ts";

/** For tests of sessions: what is started for one of them ends with it, the newest first. */
export function useServed() {
  const stack: AsyncDisposable[] = [];
  afterEach(async () => {
    for (const one of stack.splice(0).reverse()) await one[Symbol.asyncDispose]();
  });
  const keep = <T extends AsyncDisposable>(one: T): T => {
    stack.push(one);
    return one;
  };
  return {
    keep,
    /** An agent's HTTP server with pod web, in front of a runtime whose streaming server does as it is told. */
    start: async (runtimeOptions: FakeRuntimeOptions, options: Partial<AgentServerOptions> = {}) => {
      const fake = keep(await startFakeRuntime(runtimeOptions));
      const { runtime, asked } = fakeRuntimeCalls(() => fake.url);
      const agent = keep(await startAgentServer({ pods: servedPods(webPod), runtime, ...options }));
      return {
        fake,
        agent,
        /** What the runtime was asked for. */
        asked,
        exec: (query: string, container = "app") => `${agent.url}/exec/default/web/${container}?command=sh&${query}`,
        isQuiet: () => agent.running.size === 0 && fake.connections.size === 0,
      };
    },
  };
}
