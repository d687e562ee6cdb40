#!/usr/bin/env escript
%% Forward a port as VeilLink's first program did, in Erlang: a process for each client, a pair of processes that
%% copy with passive recv and send, and the end of one direction ends both.
-mode(compile).

main([Port, Target]) ->
    Options = [binary, {active, false}, {reuseaddr, true}, {backlog, 4096}, {ip, {127, 0, 0, 1}}],
    {ok, Listener} = gen_tcp:listen(list_to_integer(Port), Options),
    accept(Listener, list_to_integer(Target)).

accept(Listener, Target) ->
    {ok, Client} = gen_tcp:accept(Listener),
    Server = spawn(fun() -> receive yours -> serve(Client, Target) end end),
    case gen_tcp:controlling_process(Client, Server) of
        ok -> Server ! yours;
        {error, _} -> exit(Server, kill)
    end,
    accept(Listener, Target).

serve(Client, Target) ->
    case gen_tcp:connect({127, 0, 0, 1}, Target, [binary, {active, false}]) of
        {ok, Peer} ->
            spawn_monitor(fun() -> forward(Client, Peer) end),
            spawn_monitor(fun() -> forward(Peer, Client) end),
            receive {'DOWN', _, process, _, _} -> ok end,
            gen_tcp:close(Peer);
        {error, _} ->
            ok
    end,
    gen_tcp:close(Client).

forward(From, To) ->
    case gen_tcp:recv(From, 0) of
        {ok, Data} ->
            case gen_tcp:send(To, Data) of
                ok -> forward(From, To);
                {error, _} -> ok
            end;
        {error, _} ->
            ok
    end.
