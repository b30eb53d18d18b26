import { afterAll, beforeAll, beforeEach } from "vitest";
import { startTestApiServer, type TestApiServer } from "../../support/apiserver/server.ts";
import { Client } from "./client.ts";

/** One API server, which binds no pods, for all tests of a file or suite, and for each test a namespace of its own. */
export function useApiServer() {
  let server: TestApiServer;
  let client: Client;
  let namespace = "";
  let count = 0;

  beforeAll(async () => {
    server = await startTestApiServer({ controllers: { bind: false } });
    client = new Client(server);
  });
  afterAll(async () => {
    client.close();
    await server.close();
  });
  beforeEach(async () => {
    namespace = `ns${++count}`;
    await client.post("/api/v1/namespaces", { metadata: { name: namespace } });
  });

  return {
    get server() {
      return server;
    },
    get client() {
      return client;
    },
    get namespace() {
      return namespace;
    },
    /** In the core API, in this test's namespace. */
    path: (rest: string) => `/api/v1/namespaces/${namespace}/${rest}`,
  };
}
