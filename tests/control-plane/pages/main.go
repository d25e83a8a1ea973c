// Reads the delivery log of a namespace as client-go's dynamic client does: page by page, then each line by its name.
// It prints the names, newest first.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	config, err := clientcmd.BuildConfigFromFlags("", os.Args[1])
	check(err)
	client, err := dynamic.NewForConfig(config)
	check(err)
	resource := schema.GroupVersionResource{Group: "delivery.hookwright.dev", Version: "v1alpha1", Resource: "deliveries"}
	deliveries := client.Resource(resource).Namespace(os.Args[2])
	options := metav1.ListOptions{Limit: 4}
	for {
		page, err := deliveries.List(context.Background(), options)
		check(err)
		for _, line := range page.Items {
			one, err := deliveries.Get(context.Background(), line.GetName(), metav1.GetOptions{})
			check(err)
			if !equality.Semantic.DeepEqual(one.Object["spec"], line.Object["spec"]) {
				log.Fatalf("%s is another in the list: %v, %v", line.GetName(), line.Object, one.Object)
			}
			fmt.Println(line.GetName())
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return
		}
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
